"""Measurements on real data and at scale. Each module is a script: ``python -m benchmarks.mnist --help``."""
