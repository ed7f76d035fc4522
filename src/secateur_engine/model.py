"""A compiled model: programs for a few batch sizes over the same weights, called with numpy arrays or anything that becomes one."""

import copy
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur_engine.arrays import among, array_of, like_inputs, piece_of
from secateur_engine.errors import BadInput, EngineError
from secateur_engine.nesting import filled, matched, tensors_in
from secateur_engine.program import Outside, Program, available

__all__ = ["Model", "Session", "available"]

_GUARD = 1024


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
        if not available():
            raise EngineError(
                "the compiled engine is missing: install secateur where a C++ compiler is, or a wheel that has it"
            )
        self.document, self.arrays, self.threads, self.kernels = document, list(arrays), threads, kernels
        self.axis = int(document.get("axis", 0))
        self.cache = int(document.get("cache", 0))
        self._programs = sorted((Program(p, outside) for p in document["programs"]), key=lambda p: -p.size)
        self._lock = threading.Lock()
        self._check_trees()

    def _check_trees(self) -> None:
        """Whether inputs and outputs are nested as many as there are."""
        first = self._programs[0]
        for program in self._programs:
            if (gives := self._gives(program)) is not None:
                filled(gives, program.outputs)
        if "takes" in self.document:
            takes = self.document["takes"]
            parts = [*takes["args"], *(part for _, part in takes["kwargs"])]
            if sorted(k for part in parts for k in tensors_in(part)) != list(range(len(first.inputs))) or not all(
                isinstance(name, str) for name in takes["names"]
            ):
                raise ValueError("inputs are nested in another way than they are counted")

    def _gives(self, program: Program) -> Any:
        return program.said.get("gives", self.document.get("gives"))

    def copied(self) -> "Model":
        """Another one over the same arrays, which nothing changes."""
        outside = self._programs[0]._outside
        how: dict[str, Any] = {"threads": self.threads, "kernels": self.kernels, "outside": outside}
        return Model(copy.deepcopy(dict(self.document)), self.arrays, **how).built()

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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on what it was compiled for; the results are numpy arrays, or torch tensors where an input is one."""
        if self.cache:
            raise BadInput("this model was compiled with cache=, to generate with: call what session() gives")
        return self.run(self.tensors(args, kwargs), None, 0)

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs of a call in the order of the programs."""
        if "takes" in self.document:
            return matched(self.document["takes"], args, kwargs)
        return [*args, *kwargs.values()]

    def run(self, inputs: Sequence[Any], state: Any, position: int) -> Any:
        """Run the programs that together make up the size of the inputs."""
        turn = like_inputs(inputs)
        arrays = [array_of(x, k) for k, x in enumerate(inputs)]
        first = self._programs[0]
        if len(arrays) != len(first.inputs):
            raise BadInput(f"the model takes {len(first.inputs)} inputs and got {len(arrays)}")
        size, start, parts = self._size(arrays), 0, []
        sizes = sorted(p.size for p in self._programs)
        alone = self.document.get("alone")
        if alone and size not in sizes:
            raise BadInput(
                f"a size of {size} along axis {self.axis}: the model was compiled for {among(sizes)}, and {alone}; compile with batch={size}"
            )
        for program in self._programs:
            count = (size - start) // program.size if not alone or program.size == size else 0
            starts = range(start, start + count * program.size, program.size)
            parts += self._pieces(program, arrays, starts, state, position)
            start += count * program.size
        if start != size or not parts:
            raise BadInput(
                f"a size of {size} along axis {self.axis} is not made of {among(sizes)}"
                + (f"; compile with batch={size}" if size else "")
            )
        joined = (
            parts[0]
            if len(parts) == 1
            else [np.concatenate(p, self.axis) if p[0].ndim > self.axis else p[0] for p in zip(*parts, strict=True)]
        )
        results = [turn(x) for x in joined]
        gives = self._gives(next(p for p in self._programs if p.size == size) if alone else first)
        return results[0] if gives is None else filled(gives, results)

    def _pieces(
        self, program: Program, arrays: Sequence[NDArray[Any]], starts: Sequence[int], state: Any, position: int
    ) -> list[list[NDArray[Any]]]:
        """The results of one program from each of ``starts`` on; side by side, each on a thread of its own, where there are enough of them."""
        engine = self.engine(program)
        beside = state is None and 1 < self.threads <= len(starts)

        def piece(start: int) -> list[NDArray[Any]]:
            given = [
                piece_of(a, s, self.axis, start, program.size) for a, s in zip(arrays, program.inputs, strict=True)
            ]
            return program.run(engine, given, state, position + start, alone=beside)

        if not beside:
            return [piece(start) for start in starts]
        with ThreadPoolExecutor(self.threads) as threads:
            return list(threads.map(piece, starts))

    def _size(self, arrays: Sequence[NDArray[Any]]) -> int:
        size: int | None = None
        for k, (array, said) in enumerate(zip(arrays, self._programs[0].inputs, strict=True)):
            if not said["split"]:
                continue
            if array.ndim <= self.axis:
                raise BadInput(
                    f"an input has shape {list(array.shape)} and should have {len(said['shape'])} dimensions"
                )
            here = int(array.shape[self.axis])
            if size is not None and here != size:
                raise BadInput(f"input {k} has {here} along axis {self.axis}, and an input before it has {size}")
            size = here
        return self._programs[0].size if size is None else size


class Session:
    """A sequence that grows: the caches of one model, and how many tokens they hold."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._state = np.zeros(int(model.programs[0].said["state"]) + 2 * _GUARD, np.float32)
        self.position = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the next tokens; what came before is in the caches."""
        inputs = self._model.tensors(args, kwargs)
        size = self._model._size([array_of(x, k) for k, x in enumerate(inputs)])
        if self.position + size > self._model.cache:
            raise BadInput(
                f"the caches hold {self._model.cache} tokens; {self.position} are there and {size} more do not fit"
            )
        result = self._model.run(inputs, self._state, self.position)
        self.position += size
        return result
