"""Exact selection of the k largest scores out of any number, in bounded memory and linear time."""
