"""Options that several commands share, written once."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

__all__ = ["Debug", "Evaluate", "Force", "Inputs", "Json", "Target", "Threads", "Weights"]

Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout; all else goes to stderr.")
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Force: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace output files that Secateur did not write.")]
Target: TypeAlias = Annotated[
    str, typer.Argument(metavar="MODEL", help="Dotted path to a model or a function that returns one: mypkg.nets:make.")
]
Inputs: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="SHAPE",
        help="Example input, e.g. 1x3x224x224 or 1x128:int64; repeat for several. Or a dotted path.",
    ),
]
Weights: TypeAlias = Annotated[
    Path | None, typer.Option("--weights", help="Trained weights: safetensors, or a state_dict saved by torch.")
]
Evaluate: TypeAlias = Annotated[
    str | None,
    typer.Option("--evaluate", metavar="PATH", help="Dotted path to evaluate(model) -> float, larger is better."),
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads while measuring latency; default: what torch is set to.")
]
