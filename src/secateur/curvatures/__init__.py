"""Curvature of the loss: sample by sample, by backward recursion, as a running mean, and what it predicted held against what came."""
