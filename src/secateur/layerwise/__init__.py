"""Layer-wise surgery: a network is calibrated, pruned and repaired stage by stage, so that one stage's data is held at a time."""
