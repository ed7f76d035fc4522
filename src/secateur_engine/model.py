"""A compiled model: programs for a few batch sizes over the same weights, called with numpy arrays or anything that becomes one."""

import threading
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur_engine.errors import BadInput, EngineError

try:
    from secateur_engine import _engine
except ImportError:  # no compiler where this was installed
    _engine = None  # type: ignore[assignment]

__all__ = ["Model", "Session", "available"]

_GUARD = 1024
_TYPES = {"float32": np.float32, "int64": np.int64, "bool": np.bool_, "float64": np.float64, "int32": np.int32}
Outside = Callable[[Any, list[NDArray[Any]]], Sequence[Any]]


def available(kernels: str = "") -> str:
    """The kernels that will be used: "avx512", "avx2" or "baseline"; "" where the compiled module is missing."""
    return _engine.kernels(kernels) if _engine is not None else ""


class Model:
    """Programs over shared arrays.

    Args:
        document: what a file says: ``programs``, a list, one for each batch size (or length, of a model with caches).
        arrays: the constants that the programs name by number.
        threads: how many work on one call.
        outside: runs the operations that the engine lacks; None where there are none.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        arrays: Sequence[NDArray[Any]],
        *,
        threads: int = 1,
        kernels: str = "",
        outside: Outside | None = None,
    ) -> None:
        if _engine is None:
            raise EngineError(
                "the compiled engine is missing: install secateur where a C++ compiler is, or a wheel that has it"
            )
        self.document, self.arrays, self.threads, self.kernels = document, list(arrays), threads, kernels
        self.axis = int(document.get("axis", 0))
        self.cache = int(document.get("cache", 0))
        self._programs = sorted((Program(p, self, outside) for p in document["programs"]), key=lambda p: -p.size)
        self._lock = threading.Lock()

    def built(self) -> "Model":
        """Lay the first program out now, so that a bad one is found now."""
        for program in self._programs:
            self.engine(program)
        return self

    @property
    def programs(self) -> "list[Program]":
        """From the largest to the smallest batch."""
        return self._programs

    def engine(self, program: "Program") -> Any:
        """The program, laid out for this CPU; done once."""
        with self._lock:
            if program.engine is None:
                program.engine = program.laid_out(self.arrays, self.threads, self.kernels)
        return program.engine

    def session(self) -> "Session":
        """An empty cache to generate with; needs a model that was compiled with ``cache=``."""
        if not self.cache:
            raise BadInput("this model has no caches; compile it with cache=the longest sequence")
        return Session(self)

    def __call__(self, *inputs: Any) -> Any:
        """Run the model; the results are numpy arrays, or torch tensors where the first input is one."""
        return self.run(inputs, None, 0)

    def run(self, inputs: Sequence[Any], state: Any, position: int) -> Any:
        """Run the programs that together make up the size of the inputs."""
        turn = _torch_of(inputs)
        arrays = [np.asarray(x.detach().cpu() if hasattr(x, "detach") else x) for x in inputs]
        first = self._programs[0]
        if len(arrays) != len(first.inputs):
            raise BadInput(f"the model takes {len(first.inputs)} inputs and got {len(arrays)}")
        size, start, parts = self._size(arrays), 0, []
        for program in self._programs:
            while size - start >= program.size:
                pieces = [
                    _piece(a, s, self.axis, start, program.size) for a, s in zip(arrays, program.inputs, strict=True)
                ]
                parts.append(program.run(self.engine(program), pieces, state, position + start))
                start += program.size
        if start != size or not parts:
            sizes = sorted(p.size for p in self._programs)
            raise BadInput(f"a size of {size} along axis {self.axis} is not made of {sizes}; compile with batch={size}")
        joined = (
            parts[0]
            if len(parts) == 1
            else [np.concatenate(p, self.axis) if p[0].ndim > self.axis else p[0] for p in zip(*parts, strict=True)]
        )
        results = [turn(x) for x in joined]
        return _nested(self.document.get("result"), iter(results)) if "result" in self.document else results[0]

    def _size(self, arrays: Sequence[NDArray[Any]]) -> int:
        for array, said in zip(arrays, self._programs[0].inputs, strict=True):
            if said["split"]:
                if array.ndim <= self.axis:
                    raise BadInput(
                        f"an input has shape {list(array.shape)} and should have {len(said['shape'])} dimensions"
                    )
                return int(array.shape[self.axis])
        return self._programs[0].size


class Program:
    """One batch size."""

    def __init__(self, said: Mapping[str, Any], model: Model, outside: Outside | None) -> None:
        self.said, self.model = said, model
        self.size, self.inputs, self.outputs = int(said["size"]), list(said["inputs"]), list(said["outputs"])
        self.others: list[Any] = list(said.get("outside", []))
        self.engine: Any = None
        self._outside = outside
        if self.size < 1 or not all(s["dtype"] in _TYPES for s in (*self.inputs, *self.outputs)):
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
        self, engine: Any, pieces: Sequence[NDArray[Any]], state: Any, position: int, seconds: list[float] | None = None
    ) -> list[NDArray[Any]]:
        """One run; ``seconds`` is filled with the time of every step."""
        slots = [_checked(piece, said, k) for k, (piece, said) in enumerate(zip(pieces, self.inputs, strict=True))]
        slots += [np.empty(shape, np.float32) for shape in self.slot_shapes()[len(slots) :]]
        took = engine.run(slots, state, position, seconds is not None, self._call(slots) if self.others else None)
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


class Session:
    """A sequence that grows: the caches of one model, and how many tokens they hold."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._state = np.zeros(int(model.programs[0].said["state"]) + 2 * _GUARD, np.float32)
        self.position = 0

    def __call__(self, *inputs: Any) -> Any:
        """Run the next tokens; what came before is in the caches."""
        size = self._model._size([np.asarray(x) for x in inputs])
        if self.position + size > self._model.cache:
            raise BadInput(
                f"the caches hold {self._model.cache} tokens; {self.position} are there and {size} more do not fit"
            )
        result = self._model.run(inputs, self._state, self.position)
        self.position += size
        return result


def _place(tensor: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tensor) if len(tensor) == 7 else (*tensor, 0, 0)  # most do not move with stripes


def _number(n: Any) -> float:
    return float(n)  # "inf" and "-inf" are written as text, since JSON has no word for them


def _piece(array: NDArray[Any], said: Mapping[str, Any], axis: int, start: int, size: int) -> NDArray[Any]:
    return array.take(range(start, start + size), axis) if said["split"] and array.shape[axis] != size else array


def _checked(array: NDArray[Any], said: Mapping[str, Any], place: int) -> NDArray[Any]:
    if array.shape != tuple(said["shape"]):
        raise BadInput(f"input {place} has shape {list(array.shape)}; the model was compiled for {said['shape']}")
    rows = said.get("rows")
    if rows is not None and array.size and not (array.min() >= 0 and array.max() < rows):
        raise BadInput(
            f"input {place} has numbers from {array.min()} to {array.max()}; there are {rows} rows to look up"
        )
    return np.ascontiguousarray(array, np.float32)


def _torch_of(inputs: Sequence[Any]) -> Callable[[NDArray[Any]], Any]:
    if inputs and hasattr(inputs[0], "detach"):
        import torch

        return torch.from_numpy
    return lambda array: array


def _nested(shape: Any, values: Any) -> Any:
    if isinstance(shape, dict):
        return {key: _nested(part, values) for key, part in shape.items()}
    if isinstance(shape, list):
        return tuple(_nested(part, values) for part in shape)
    return next(values)
