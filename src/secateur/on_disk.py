"""`prune_on_disk`: a checkpoint in, a pruned checkpoint out, and never more in memory than the data and a block.

The files of the new checkpoint are copies of the old ones in which the weights are changed where they lie, so that names, order, shards,
index, tied weights and everything else in the folder stay as they were. It stands beside its place as ``<target>.part`` until it is whole.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.amounts import Amount
from secateur.errors import BadFile, UnknownName
from secateur.mapped import files_in, mapped, tensors_in
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
        BadFile: the target is there, is inside the source, or the source is no checkpoint; or what was begun there is another run.
        WrongModel: the files are of another network.
        UnknownName, BadSparsity, BadCalibration, NothingToPrune: see `secateur.methods.LayerObs`.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    part = target.with_name(f"{target.name}.part")
    _check(source, target, part)
    how = {"granularity": granularity, "ignore": ignore, "seed": seed} | options
    method = _method(part / _JOURNAL, sparsity, scope, how)
    copied = part / target.name

    def make() -> nn.Module:
        _copy(source, copied)
        return mapped(build, copied, shared=True)

    try:
        done = method.into(mapped(build, source), make, task=task, example_inputs=example_inputs, lean=True)
        _settle(copied, done.model)
    except BaseException:
        if not any((part / _JOURNAL).glob("*.safetensors")):  # nothing is finished, so nothing is lost
            shutil.rmtree(part, ignore_errors=True)
        raise
    copied.replace(target)
    shutil.rmtree(part)
    return done.report


def _method(journal: Path, sparsity: float | None, scope: str, how: dict[str, Any]) -> LayerObs:
    if "folder" in how:
        raise UnknownName(f"a run is written down in {journal} by itself: leave folder= out")
    if how["granularity"] == "channel":
        raise UnknownName(
            "weights become zero where they lie, and all widths stay: granularity='channel' needs sc.prune"
        )
    pattern = granularity_of(how["granularity"])
    amount = Amount(sparsity=sparsity, budget=None, scope=scope, overrides=None, min_kept=0)
    asked = amount.is_given and not amount.said_by(pattern)
    how |= {"granularity": pattern, "folder": str(journal), "allocation": amount.of_groups() if asked else None}
    method: LayerObs = built(LayerObs, how, "method 'layer_obs'")
    return method


def _check(source: Path, target: Path, part: Path) -> None:
    files_in(source)
    if target.exists():
        raise BadFile(f"{target} is there already, and nothing is overwritten: name a new place, or delete it first")
    origin = source.resolve()
    for place in (target.resolve(), part.resolve()):
        if origin == place or origin in place.parents or place in origin.parents:
            raise BadFile(
                f"{place} lies inside {source}, or around it, which stays as it is: name a place outside of it"
            )
    if part.exists() and not (part / _JOURNAL).is_dir():
        raise BadFile(
            f"{part} is where the unfinished checkpoint would stand, and it is something else: rename it, or name another target"
        )
    if source.is_file() and target.suffix != source.suffix:
        raise BadFile(f"{source} is a file, so {target} becomes one: name it *{source.suffix}")


def _copy(source: Path, into: Path) -> None:
    """Afresh: what a killed run left half done is in no journal. Links become what they point to; those that point nowhere are left out."""
    into.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        shutil.copyfile(source, into)
        return
    shutil.rmtree(into, ignore_errors=True)
    seen: set[Path] = set()
    for place, folders, files in os.walk(source, followlinks=True):
        here = Path(place)
        if here.resolve() in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(here.resolve())
        to = into / here.relative_to(source)
        to.mkdir(parents=True, exist_ok=True)
        for name in files:
            if (here / name).exists():
                shutil.copyfile(here / name, to / name)


def _settle(copied: Path, model: nn.Module) -> None:
    """Bring tensors that the files hold under several names in line, and all of it onto the disk."""
    state = model.state_dict()
    for file in files_in(copied):
        for name, tensor in tensors_in(file, shared=True).items():
            if name in state and not torch.equal(tensor, state[name]):
                tensor.copy_(state[name])
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
