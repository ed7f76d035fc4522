"""Where `secateur.replacing` was found before."""

from secateur.replacing import replacing

__all__ = ["replacing"]
