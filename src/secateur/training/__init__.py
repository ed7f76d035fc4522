"""Inside the user's training loop: zeros that are held, units that sleep and come back, a teacher that is listened to."""
