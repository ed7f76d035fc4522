"""``secateur inspect FILE``: what a model file holds, without the model's class."""

from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.options import Debug, Json
from secateur.cli.screen import print_json, show
from secateur.storage import inspect

__all__ = ["command"]
