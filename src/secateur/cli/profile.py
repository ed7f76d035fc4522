"""``secateur profile MODEL``: just count."""

from secateur.cli.options import Debug, Evaluate, Inputs, Json, Target, Threads, Weights
from secateur.cli.screen import print_json, show, working
from secateur.names import dotted
from secateur.profiling.profile import profile
from secateur.recipe import example_inputs_of, trained_model
from secateur.reporting.terminal import render_profile
from secateur.task import Task

__all__ = ["command"]


def command(
    target: Target,
    *,
    inputs: Inputs = None,
    weights: Weights = None,
    evaluate: Evaluate = None,
    threads: Threads = None,
    as_json: Json = False,
    _debug: Debug = False,
) -> None:
    """Count parameters, non-zeros, bytes and, with --input, MACs and latency of a model."""
    task = Task(evaluate=dotted(evaluate)) if evaluate else None
    example = example_inputs_of(inputs or ())
    model = trained_model(target, str(weights) if weights else None)
    with working("measuring"):
        found = profile(model, example, task=task, threads=threads)
    if as_json:
        print_json("profile", {"profile": found.to_dict()})
    else:
        show(render_profile(found))
