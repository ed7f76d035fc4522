"""Narrowing: a masked network becomes a smaller one that computes the same, and the search for the widths that meet a budget."""
