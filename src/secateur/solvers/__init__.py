"""Small dense problems that pruning leads to: one idea a file, tensors in, tensors out; no `nn.Module` is known here."""
