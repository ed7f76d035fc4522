"""Second order on real networks; see ``python -m benchmarks.second_order --help``."""
