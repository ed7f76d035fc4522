"""What the engine did with each layer: measured, beside the same layer with all its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

import secateur_engine

__all__ = ["Layer", "RuntimeReport", "layers_of", "notes_of"]

_FORMS = {
    "1": "single nonzeros",
    "2": "2x1 blocks",
    "4": "4x1 blocks",
    "dense": "all weights",
    "rows": "rows times a vector",
    "halves": "four of every eight",
    "": "",
}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One step.

    Args:
        name: the module's path; kind: the operation.
        sparsity: the fraction of zeros in its weight.
        form: how the weight is kept; kernel: the engine's words for its choice.
        ms: its median time; dense_ms: the same layer with all weights kept; None where that is the same or was not measured.
        macs: multiply-accumulates with all weights.
    """

    name: str
    kind: str
    sparsity: float
    form: str
    kernel: str
    ms: float
    dense_ms: float | None
    macs: int

    @property
    def why(self) -> str:
        """Why the weight is kept as it is."""
        if self.form == "all weights":
            return f"dense: {self.sparsity:.0%} zeros are too few to skip"
        return f"sparse: {self.sparsity:.0%} zeros are skipped" if self.form else ""


@dataclass(frozen=True, kw_only=True)
class RuntimeReport:
    """All layers.

    Args:
        kernels: "avx512", "avx2", "baseline", or "torch" where the engine is missing.
        notes: operations that run in torch, and why.
    """

    kernels: str
    threads: int
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of multiply-accumulates that are skipped: sparsity weighted by work, which is what time follows."""
        macs = sum(layer.macs for layer in self.layers)
        return sum(layer.macs * layer.sparsity for layer in self.layers) / macs if macs else 0.0

    def __str__(self) -> str:
        head = f"{self.kernels}, {self.threads} thread{'s' if self.threads > 1 else ''}; {self.sparsity:.1%} of the multiply-accumulates are zeros"
        lines = [head, f"{'layer':32} {'operation':12} {'zeros':>7} {'ms':>8} {'dense':>8}  kept as"]
        for layer in self.layers:
            dense = f"{layer.dense_ms:8.3f}" if layer.dense_ms is not None else " " * 8
            zeros = f"{layer.sparsity:7.1%}" if layer.macs else " " * 7
            lines.append(
                f"{layer.name[-32:]:32} {layer.kind[:12]:12} {zeros} {layer.ms:8.3f} {dense}  {layer.form}{', ' if layer.kernel else ''}{layer.kernel}"
            )
        return "\n".join([*lines, *self.notes])


def layers_of(engine: secateur_engine.Model, *, seconds: float, dense: bool) -> list[Layer]:
    """Time the steps of the largest program."""
    one = engine.programs[0]
    said = engine.document.get("labels", [])
    labels: list[dict[str, Any]] = next(
        (s["labels"] for s, p in zip(said, engine.document["programs"], strict=False) if p is one.said), []
    )
    times = _together(_times(engine, seconds), labels)
    full = _together(_times(_filled(engine), seconds), labels) if dense else None
    layers = []
    for k, label in enumerate(labels):
        if label.get("part") is not None:
            continue
        weighed = label["form"] in ("1", "2", "4", "rows", "halves")
        layers.append(
            Layer(
                name=label["path"],
                kind=label["kind"],
                sparsity=1 - label["density"],
                form=_FORMS.get(label["form"], label["form"]),
                kernel=engine.engine(one).choice(k),
                ms=times[k],
                dense_ms=full[k] if full and weighed else None,
                macs=label["macs"],
            )
        )
    return layers


def _together(times: list[float], labels: list[dict[str, Any]]) -> list[float]:
    """The time of every step with that of its further pieces."""
    for k, label in enumerate(labels):
        if label.get("part") is not None:
            times[label["part"]] += times[k]
    return times


def notes_of(engine: secateur_engine.Model) -> Sequence[str]:
    """What runs in torch."""
    found: list[str] = [note for said in engine.document.get("labels", []) for note in said["notes"]]
    return list(dict.fromkeys(found))


def _times(engine: secateur_engine.Model, seconds: float) -> list[float]:
    one = engine.programs[0]
    inputs: list[NDArray[Any]] = [np.zeros(s["shape"], np.float32) for s in one.inputs]
    state = np.zeros(int(one.said["state"]) + 2048, np.float32)
    samples: list[list[float]] = []
    end = perf_counter() + seconds
    while len(samples) < 4 or (perf_counter() < end and len(samples) < 200):
        took: list[float] = []
        one.run(engine.engine(one), inputs, state, 0, took)
        samples.append(took)
    return [1e3 * median(column) for column in zip(*samples[1:], strict=True)]


def _filled(engine: secateur_engine.Model) -> secateur_engine.Model:
    """The same program with every zero of every product kept."""
    arrays, one = list(engine.arrays), engine.programs[0]
    steps = []
    for kind, tensors, ints, numbers, names in one.said["steps"]:
        step = [kind, tensors, list(ints), numbers, list(names)]
        if kind == "product" and any(step[2][9::4]):
            step = _dense_product(step, arrays)
        elif kind == "vectors" and ints[1]:
            step = _dense_vectors(step, arrays)
        steps.append(step)
    document = {**engine.document, "programs": [{**one.said, "steps": steps}]}
    return secateur_engine.Model(document, arrays, threads=engine.threads, kernels=engine.kernels, outside=one._outside)


def _dense_product(step: list[Any], arrays: list[NDArray[Any]]) -> list[Any]:
    rows, columns = len(arrays[step[4][0]]), len(arrays[step[4][1]])
    whole, ints = rows // 4 * 4, step[2][:1] + [0] * 5
    names = step[4][:3]
    for height, first, groups in ((4, 0, whole // 4), (1, whole, rows - whole)):
        if groups:
            ints += [height, first, groups, 0]
            names = [*names, len(arrays)]
            arrays.append(np.full(groups * columns * height, 1e-3, np.float32))
    return [step[0], step[1], ints, step[3], names]


def _dense_vectors(step: list[Any], arrays: list[NDArray[Any]]) -> list[Any]:
    bias, values, *rest = step[4]
    scales = rest[{1: 2, 2: 1}[step[2][1]] :]
    size = step[1][1][3][1] * step[1][0][3][1]
    arrays.append(np.ones(size, arrays[values].dtype))
    return [step[0], step[1], [step[2][0], 0, step[2][2]], step[3], [bias, len(arrays) - 1, *scales]]
