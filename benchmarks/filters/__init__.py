"""Criteria of channels on real networks: score against multiply-accumulates, before and after a short training."""
