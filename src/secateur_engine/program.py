"""One program of a compiled model: a batch size, its steps, and what it passes to torch."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur_engine.arrays import checked
from secateur_engine.errors import EngineError

try:
    from secateur_engine import _engine
except ImportError:  # no compiler where this was installed
    _engine = None  # type: ignore[assignment]

__all__ = ["Outside", "Program", "available"]

_TYPES = {"float32": np.float32, "int64": np.int64, "bool": np.bool_, "float64": np.float64, "int32": np.int32}
Outside = Callable[[Any, list[NDArray[Any]]], Sequence[Any]]


def available(kernels: str = "") -> str:
    """The kernels that will be used: "avx512", "avx2" or "baseline"; "" where the compiled module is missing."""
    return _engine.kernels(kernels) if _engine is not None else ""


class Program:
    """One batch size."""

    def __init__(self, said: Mapping[str, Any], outside: Outside | None) -> None:
        self.said = said
        self.size, self.inputs, self.outputs = int(said["size"]), list(said["inputs"]), list(said["outputs"])
        self.others: list[Any] = list(said.get("outside", []))
        self.engine: Any = None
        self._outside = outside
        known = all(s["dtype"] in _TYPES for s in (*self.inputs, *self.outputs))
        if self.size < 1 or not known or not all(isinstance(s["split"], bool) for s in self.inputs):
            raise ValueError("a program has impossible inputs or outputs")

    def laid_out(self, arrays: Sequence[NDArray[Any]], threads: int, kernels: str) -> Any:
        """Hand everything to the engine, which checks it."""
        assert _engine is not None
        slots = [prod(shape) for shape in self.slot_shapes()]
        sizes = int(self.said["arena"]), int(self.said["state"])
        engine = _engine.Program(*sizes, slots, threads, kernels, int(self.said.get("local", 0)))
        for array in arrays:
            engine.constant(array)
        for kind, tensors, ints, numbers, names in self.said["steps"]:
            engine.add(kind, [_place(t) for t in tensors], ints, [_number(n) for n in numbers], names)
        engine.complete()
        return engine

    def slot_shapes(self) -> list[tuple[int, ...]]:
        """Of inputs, outputs, and what passes between the engine and the operations that it lacks."""
        between = [s for other in self.others for s in (*other["inputs"], *other["outputs"])]
        return [tuple(s["shape"]) for s in (*self.inputs, *self.outputs, *between)]

    def run(
        self,
        engine: Any,
        pieces: Sequence[NDArray[Any]],
        state: Any,
        position: int,
        seconds: list[float] | None = None,
        *,
        alone: bool = False,
    ) -> list[NDArray[Any]]:
        """One run, ``alone`` on the caller's thread; ``seconds`` is filled with the time of every step."""
        slots = [checked(piece, said, k) for k, (piece, said) in enumerate(zip(pieces, self.inputs, strict=True))]
        slots += [np.empty(shape, np.float32) for shape in self.slot_shapes()[len(slots) :]]
        call = self._call(slots) if self.others else None
        took = engine.run(slots, state, position, seconds is not None, call, alone)
        if seconds is not None:
            seconds[:] = took
        made = slots[len(self.inputs) : len(self.inputs) + len(self.outputs)]
        return [
            a if s["dtype"] == "float32" else a.astype(_TYPES[s["dtype"]])
            for a, s in zip(made, self.outputs, strict=True)
        ]

    def _call(self, slots: list[NDArray[Any]]) -> Callable[[int], None]:
        if self._outside is None:
            names = sorted({other["name"] for other in self.others})
            raise EngineError(f"this model needs torch for {', '.join(names)}: load it with secateur.runtime.load")
        starts, at = [], len(self.inputs) + len(self.outputs)
        for other in self.others:
            starts.append(at)
            at += len(other["inputs"]) + len(other["outputs"])

        def call(which: int) -> None:
            other = self.others[which]
            here, n = starts[which], len(other["inputs"])
            inputs: list[NDArray[Any]] = [
                slots[here + k].astype(_TYPES[s["dtype"]], copy=False) for k, s in enumerate(other["inputs"])
            ]
            assert self._outside is not None
            for k, made in enumerate(self._outside(other, inputs)):
                slots[here + n + k][...] = made

        return call


def _place(tensor: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tensor) if len(tensor) == 7 else (*tensor, 0, 0)  # most do not move with stripes


def _number(n: Any) -> float:
    return float(n)  # "inf" and "-inf" are written as text, since JSON has no word for them
