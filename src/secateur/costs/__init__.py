"""What people pay: one file a cost; the file's name is the cost's name in ``budget="macs:50%"``."""
