"""How much where: one file an allocation; the file's name is the allocation's name (a trailing underscore left off)."""
