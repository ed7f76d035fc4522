"""ADMM in training: the copy that keeps the constraint and its duals, the stages, and how one is handed on to the next."""
