"""Channels that can stand in for one another: the wires between layers, what passes along them, and what is redundant."""
