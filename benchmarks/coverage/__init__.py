"""Coverage: which architectures can be narrowed, checked one by one against their masked selves."""
