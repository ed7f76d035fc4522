"""EfficientNet-Lite0: the one that the library measures pictures with."""

from secateur.fidelity.lite0 import STAGES, Block, EfficientNetLite0, SameConv2d

__all__ = ["STAGES", "Block", "EfficientNetLite0", "SameConv2d"]
