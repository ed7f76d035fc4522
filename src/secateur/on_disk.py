"""`prune_on_disk`: a checkpoint in, a pruned checkpoint out, and never more in memory than the data and a block.

The files of the new checkpoint are copies of the old ones in which the weights are changed where they lie, so that names, order, shards,
index, tied weights and everything else in the folder stay as they were. It stands beside its place as ``<target>.part`` until it is whole.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from secateur.amounts import Amount
from secateur.errors import BadFile
from secateur.mapped import files_in, mapped
from secateur.methods.layer_obs import LayerObs
from secateur.names import build as built
from secateur.names import granularity_of
from secateur.report import Report
from secateur.targets import Ignore
from secateur.task import Task

__all__ = ["prune_on_disk"]

_JOURNAL = "secateur-run"  # inside the unfinished folder


def prune_on_disk(
    build: Callable[[], nn.Module],
    source: str | Path,
    target: str | Path,
    *,
    task: Task,
    sparsity: float | None = None,
    granularity: str = "unstructured",
    scope: str = "global",
    ignore: Ignore | list[Ignore] | tuple[Ignore, ...] = (),
    example_inputs: Any = None,
    seed: int = 0,
    **options: Any,
) -> Report:
    """Prune a checkpoint of safetensors files layer by layer (`secateur.methods.LayerObs`) without holding the network in memory.

    Weights stay in the files and are read and written where they are touched; the system takes their memory back when it needs room. What
    is held is what the batches are at one block, the Hessians of its layers, and that block. Killed, the same call goes on after the last
    block that was finished. The source is not changed.

    Args:
        build: makes the network, e.g. ``lambda: AutoModelForCausalLM.from_config(config)``; its parameters take no memory meanwhile.
        source: a ``.safetensors`` file, or a folder of them as the Hugging Face hub lays it out.
        target: the file or folder that is written; it must not be there yet.
        task: calibration batches; labels are not used.
        sparsity: as in `secateur.prune`.
        granularity: as there.
        scope: as there; with "layer" no layer is looked at twice.
        ignore: as there.
        example_inputs: as there, for the receipt.
        seed: as there.
        **options: of `secateur.methods.LayerObs`, e.g. ``tune=2``.

    Returns:
        The receipt; bytes are those of the tensors, dense, and as `secateur.save` would pack them.

    Raises:
        BadFile: the target is there, is inside the source, or the source is no checkpoint.
        WrongModel: the files are of another network.
        UnknownName, BadSparsity, BadCalibration, NothingToPrune: see `secateur.methods.LayerObs`.
    """
    source, target = Path(source), Path(target)
    part = target.with_name(f"{target.name}.part")
    _check(source, target)
    pattern = granularity_of(granularity)
    amount = Amount(sparsity=sparsity, budget=None, scope=scope, overrides=None, min_kept=0)
    asked = amount.is_given and not amount.said_by(pattern)
    how = {"granularity": pattern, "ignore": ignore, "seed": seed, "folder": str(part / _JOURNAL)}
    method: LayerObs = built(
        LayerObs, how | {"allocation": amount.of_groups() if asked else None} | options, "method 'layer_obs'"
    )
    dense = mapped(build, source)
    _copy(source, part / target.name)
    pruned = mapped(build, part / target.name, shared=True)
    done = method.into(dense, pruned, task=task, example_inputs=example_inputs, lean=True)
    for file in files_in(part / target.name):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    (part / target.name).replace(target)
    shutil.rmtree(part)
    return done.report


def _check(source: Path, target: Path) -> None:
    files_in(source)
    if target.exists():
        raise BadFile(f"{target} is there already, and nothing is overwritten: name a new place, or delete it first")
    if source.resolve() in target.resolve().parents:
        raise BadFile(f"{target} lies inside {source}, which stays as it is: name a place outside of it")
    if source.is_file() and target.suffix != source.suffix:
        raise BadFile(f"{source} is a file, so {target} becomes one: name it *{source.suffix}")


def _copy(source: Path, into: Path) -> None:
    """Afresh: what a killed run left half done is in no journal."""
    into.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, into)
        return
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    for path in source.rglob("*"):
        to = into / path.relative_to(source)
        if path.is_dir():
            to.mkdir(parents=True, exist_ok=True)
        else:  # the file itself where the hub's cache has a link
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
