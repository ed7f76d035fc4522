"""Storage: a pruned model as one safetensors file, and back. ``docs/file-format.md`` is the specification."""

from secateur.storage.inspecting import File, StoredTensor, inspect, is_ours
from secateur.storage.loading import load, read_tensors
from secateur.storage.saving import save

__all__ = ["File", "StoredTensor", "inspect", "is_ours", "load", "read_tensors", "save"]
