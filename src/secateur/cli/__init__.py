"""The command line: `secateur prune | profile | compare | sensitivity | inspect | report | demo`.

The library neither prints nor logs; everything a user sees is rendered here, from values and callbacks.
"""

from secateur.cli.app import main

__all__ = ["main"]
