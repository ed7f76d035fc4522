"""Doors to other runtimes: ONNX files that were checked before they are kept, and readable Python source."""

from secateur.export.onnx import Exported, onnx
from secateur.export.source import source

__all__ = ["Exported", "onnx", "source"]
