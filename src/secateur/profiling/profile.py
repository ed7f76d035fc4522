"""The receipt's measurements: what one model costs (`profile`), and what changed (`compare`).

The model is left as it was: mode, gradients, random state, hooks and device. What was not measured is ``None``, with a note that
says why and how to ask for it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import WrongModel
from secateur.examples import Example, device_of, leaving_no_trace, run
from secateur.narrowing.narrow import structure_of
from secateur.packing.pack import packed_nbytes
from secateur.profiling.macs import Macs, count_macs, count_nonzeros, holder_of
from secateur.profiling.timing import measure, using_threads
from secateur.profiling.weighing import GZIP_LIMIT, dense_nbytes, gzip_nbytes
from secateur.report import LayerProfile, Profile, Pruned, Report
from secateur.task import Task

__all__ = ["compare", "profile"]


def profile(
    model: nn.Module | Pruned,
    example_inputs: Any = None,
    *,
    task: Task | None = None,
    seconds: float = 1.0,
    threads: int | None = None,
    gzip: bool | None = None,
) -> Profile:
    """Measure what a model costs; the model is left as it was.

    Args:
        model: any module, sparse or dense, hooked or not; on the meta device only shapes are counted.
        example_inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs. Without it there are no MACs and no
            latency.
        task: ``task.evaluate`` gives the score.
        seconds: about how long to measure latency at most; 0 leaves it out.
        threads: with how many threads to measure; ``None`` takes what torch is set to.
        gzip: whether to compress the plain file to see its size; ``None`` does so up to 32 MiB.

    Raises:
        WrongModel: the model does not run on the example, or has parameters without a shape.

    >>> layer = nn.Linear(10, 4)
    >>> found = profile(layer, torch.zeros(1, 10), seconds=0)
    >>> found.params, found.macs
    (44, 40)
    """
    module = _module(model)
    found = _profile(module, example_inputs, task, gzip)
    return _with_latency([module], [found], example_inputs, seconds, threads)[0]


def compare(
    before: nn.Module | Pruned | Profile,
    after: nn.Module | Pruned | Profile,
    example_inputs: Any = None,
    *,
    task: Task | None = None,
    method: str = "",
    settings: Mapping[str, Any] | None = None,
    notes: Iterable[str] = (),
    seconds: float = 1.0,
    threads: int | None = None,
    gzip: bool | None = None,
) -> Report:
    """Measure two models side by side; their latencies are taken in turns, so that both see the same machine.

    Args:
        before: a module, a `Pruned`, or a profile that was measured earlier.
        after: likewise.
        example_inputs: as in `profile`, and so are ``task``, ``seconds``, ``threads`` and ``gzip``.
        method: what was done, in words.
        settings: the same as data.
        notes: what the reader should know.
        task: for the scores.
        seconds: about how long to measure each latency at most.
        threads: for latency.
        gzip: whether to compress the plain files.

    Raises:
        WrongModel: as in `profile`.
    """
    sides = [side if isinstance(side, Profile) else _module(side) for side in (before, after)]
    found = [side if isinstance(side, Profile) else _profile(side, example_inputs, task, gzip) for side in sides]
    fresh = [place for place, side in enumerate(sides) if not isinstance(side, Profile)]
    modules = [side for side in sides if not isinstance(side, Profile)]
    timed = _with_latency(modules, [found[place] for place in fresh], example_inputs, seconds, threads)
    for place, result in zip(fresh, timed, strict=True):
        found[place] = result
    apart = len(fresh) < 2 and all(side.latency for side in found)
    remark = (
        "The latencies were measured one after the other, not in turns: compare both models in one call to be sure",
    )
    return Report(
        before=found[0],
        after=found[1],
        method=method,
        settings=dict(settings or {}),
        notes=(*notes, *(remark if apart else ())),
    )


def _module(model: nn.Module | Pruned) -> nn.Module:
    return model.model if isinstance(model, Pruned) else model


def _profile(model: nn.Module, example_inputs: Any, task: Task | None, gzip: bool | None) -> Profile:
    _refuse_lazy(model)
    notes: list[str] = []
    macs, inputs = None, ""
    if example_inputs is None:
        notes.append("MACs and latency were not measured: pass example_inputs=")
    else:
        example = Example.of(example_inputs, device_of(model))
        inputs = example.describe()
        with leaving_no_trace(model):
            macs = run(model, example, lambda: count_macs(model, *example))
    layers = _layers(model, macs)
    on_disk: Any = _bytes(model, gzip, notes)
    return Profile(
        model=type(model).__name__,
        params=sum(layer.params for layer in layers),
        nonzeros=sum(layer.nonzeros for layer in layers),
        layers=layers,
        macs=sum(macs.total.values()) if macs else None,
        nonzero_macs=sum(macs.nonzero.values()) if macs else None,
        score=_score(model, task),
        uncounted=tuple(macs.uncounted) if macs else (),
        inputs=inputs,
        **on_disk,
        notes=tuple(notes),
    )


def _layers(model: nn.Module, macs: Macs | None) -> tuple[LayerProfile, ...]:
    held: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        held.setdefault(holder_of(name), []).append(parameter)
    tied = {path for path, module in model.named_modules() if path in (macs.total if macs else ()) or path in held}
    return tuple(
        _layer(path, module, held.get(path, []), macs) for path, module in model.named_modules() if path in tied
    )


def _layer(path: str, module: nn.Module, parameters: list[Tensor], macs: Macs | None) -> LayerProfile:
    own = parameters or list(module.parameters(recurse=False))  # a tied weight shows its shape, but counts elsewhere
    largest = max(own, key=Tensor.numel, default=None)
    return LayerProfile(
        name=path,
        kind=type(module).__name__,
        shape=tuple(largest.shape) if largest is not None else (),
        params=sum(p.numel() for p in parameters),
        nonzeros=sum(p.numel() if p.device.type == "meta" else count_nonzeros(p) for p in parameters),
        macs=macs.total.get(path, 0) if macs else None,
        nonzero_macs=macs.nonzero.get(path, 0) if macs else None,
    )


def _bytes(model: nn.Module, gzip: bool | None, notes: list[str]) -> dict[str, int | None]:
    state = model.state_dict()
    named = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if len(named) < len(state):
        notes.append(
            f"{len(state) - len(named)} entries of the state dict are no tensors; the bytes on disk leave them out"
        )
    dense = dense_nbytes(named)
    if any(tensor.device.type == "meta" for tensor in named.values()):
        notes.append(
            "The model is on the meta device: every weight counts as non-zero, and nothing was packed, zipped or timed"
        )
        return {"dense_bytes": dense}
    if gzip is None and dense > GZIP_LIMIT:
        notes.append(
            f"gzip was not tried on {dense / 1e6:,.0f} MB (about {dense / 2e7:,.0f} s): ask for it with gzip=True"
        )
    zipped = gzip_nbytes(named) if gzip or (gzip is None and dense <= GZIP_LIMIT) else None
    return {"dense_bytes": dense, "gzip_bytes": zipped, "packed_bytes": _packed(named, model, notes)}


def _packed(named: Mapping[str, Tensor], model: nn.Module, notes: list[str]) -> int | None:
    structure = structure_of(model)
    try:
        return packed_nbytes(named, model=type(model).__name__, structure=structure.to_dict() if structure else None)
    except WrongModel as error:
        notes.append(f"The file that sc.save would write was not sized: {error}")
        return None


def _score(model: nn.Module, task: Task | None) -> float | None:
    if task is None or task.evaluate is None:
        return None
    with leaving_no_trace(model):
        return float(task.evaluate(model))


def _with_latency(
    models: list[nn.Module], found: list[Profile], example_inputs: Any, seconds: float, threads: int | None
) -> list[Profile]:
    on_meta = any(p.device.type == "meta" for model in models for p in model.parameters())
    if example_inputs is None or not models or on_meta or seconds <= 0:
        why = ("Latency was not measured (seconds=0)",) if example_inputs is not None and not on_meta else ()
        return [replace(one, notes=(*one.notes, *why)) for one in found]
    calls = []
    for model in models:
        example = Example.of(example_inputs, device_of(model))
        calls.append(lambda model=model, example=example: model(*example.args, **example.kwargs))
    device = device_of(models[0]) or torch.device("cpu")
    with leaving_no_trace(models[0]), leaving_no_trace(models[-1]), using_threads(threads):
        latencies = measure(calls, seconds=seconds, device=device.type)
    return [replace(one, latency=latency) for one, latency in zip(found, latencies, strict=True)]


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise WrongModel(
                f"{name!r} has no shape yet (a lazy layer): run the model once on an example, then measure it"
            )
