"""Networks with real weights, built as their sources define them, so that the state dicts of Python packages load."""
