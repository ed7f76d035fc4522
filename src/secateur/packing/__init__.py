"""Packing: tensors in the format that makes each smallest, and the text that says how they lie in a file."""
