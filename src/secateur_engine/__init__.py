"""What serving a compiled model needs: this package, its compiled module, and numpy. It never imports torch.

import secateur_engine
model = secateur_engine.load("model.sc")
scores = model(images)
"""

from secateur_engine.errors import BadFile, BadInput, EngineError
from secateur_engine.files import load, read, write
from secateur_engine.model import Model, Session, available

__all__ = ["BadFile", "BadInput", "EngineError", "Model", "Session", "available", "load", "read", "write"]
