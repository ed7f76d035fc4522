"""What leaves together: one file a granularity. A string such as ``"2:4"`` is resolved by each file's ``parse``."""
