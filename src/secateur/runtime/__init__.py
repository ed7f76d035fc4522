"""The sparse CPU engine: `compile` a pruned model, and zeros are not multiplied."""

from secateur.runtime.compiled import Compiled, compile_model, load
from secateur.runtime.reporting import Layer, RuntimeReport

__all__ = ["Compiled", "Layer", "RuntimeReport", "compile_model", "load"]
