"""`compile`: a model as a program for the sparse engine, called like the module."""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import secateur_engine
from secateur.counting import check_choice, check_number
from secateur.errors import BadFile, UnknownName, UnknownOperation, WrongModel
from secateur.examples import Example, leaving_no_trace, run
from secateur.report import Pruned
from secateur.runtime.documents import document_of
from secateur.runtime.outside import runner
from secateur.runtime.reporting import Layer, RuntimeReport, layers_of, notes_of
from secateur.runtime.trying import check_session, size_of, sized

__all__ = ["Compiled", "compile_model", "load"]

_VALUES = ("float32", "float16", "int8")
_WIDTHS = {"avx512": 16, "avx2": 8, "baseline": 4}  # floats in a register


class Compiled:
    """A compiled model. Call it with what the module takes: torch tensors or numpy arrays; several threads may at once."""

    def __init__(
        self, engine: secateur_engine.Model | None, module: nn.Module | None, notes: Sequence[str] = ()
    ) -> None:
        self.engine, self._module, self._notes = engine, module, list(notes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result."""
        if self.engine is None:
            return self._in_torch(args, kwargs)
        return self.engine(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> "Compiled":
        if self.engine is None:
            return Compiled(None, copy.deepcopy(self._module, memo), self._notes)
        return Compiled(self.engine.copied(), None, self._notes)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a compiled model does not pickle: save(path) writes one file that secateur.runtime.load reads")

    def session(self) -> secateur_engine.Session:
        """An empty cache, for generation token by token."""
        if self.engine is None:
            raise UnknownOperation("generation with a cache needs the compiled engine, which is not installed here")
        return self.engine.session()

    def report(self, *, seconds: float = 1.0, dense: bool = True) -> RuntimeReport:
        """Time every layer: with its zeros left out, and (``dense``) with all weights multiplied by the same engine."""
        if self.engine is None:
            return RuntimeReport(kernels="torch", threads=torch.get_num_threads(), layers=(), notes=tuple(self._notes))
        layers: list[Layer] = layers_of(self.engine, seconds=seconds, dense=dense)
        return RuntimeReport(
            kernels=secateur_engine.available(self.engine.kernels),
            threads=self.engine.threads,
            layers=tuple(layers),
            notes=(*self._notes, *notes_of(self.engine)),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """One file with everything; `secateur.runtime.load` and `secateur_engine.load` read it, without the model's class."""
        if self.engine is None:
            raise UnknownOperation("a compiled model is saved where the compiled engine is installed")
        secateur_engine.write(path, self.engine.document, self.engine.arrays)

    def _in_torch(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._module is not None
        numbers = any(isinstance(a, np.ndarray) for a in (*args, *kwargs.values()))
        args, kwargs = tree_map_only(np.ndarray, torch.from_numpy, (args, kwargs))
        with torch.no_grad():
            made = self._module(*args, **kwargs)
        return tree_map_only(Tensor, lambda t: t.numpy(), made) if numbers else made


def compile_model(
    model: nn.Module | Pruned,
    example_inputs: Any,
    *,
    threads: int | None = None,
    batch: int | tuple[int, int] | None = None,
    values: str = "float32",
    cache: int = 0,
    tune: bool = False,
    kernels: str = "",
    form: str | None = None,
    stripes: bool | int = True,
) -> Compiled:
    """Compile a model for the CPU; zeros of its weights are not multiplied.

    Args:
        model: a module, or what `secateur.prune` returned. It is not changed.
        example_inputs: what its ``forward`` takes: a tensor, a tuple, or a dict of keyword inputs. All sizes but the batch (the first
            axis) are fixed.
        threads: how many work on one call; None: as many as torch uses.
        batch: the batch size, or the smallest and largest. A range is covered by programs for powers of two, which share all weights.
        values: "float32", "float16" or "int8": how weights are kept for products with single vectors (batch 1 of a linear layer).
        cache: for generation: how many tokens the caches of causal attention hold; the second axis (length) then takes the batch's
            part, and positions must be an input. See `Compiled.session`.
        tune: time the choices of every product and keep the best (seconds to a minute); the choices are saved too.
        kernels: "avx512", "avx2", "baseline"; the best that there is, if it is left out.
        stripes: run neighbouring layers over a few rows of their images at a time where their planes are too large for the cache;
            False: nowhere; a number of rows: wherever that is possible.
        form: keep all weights as "1" (single nonzeros), "2" or "4" (blocks of rows) or "dense", instead of choosing for each layer.

    Raises:
        UnknownOperation: the model cannot be captured, or needs types that the engine does not have.
        WrongModel: it does not run on the example.
    """
    module = _module_of(model)
    asked = {"values": values, "form": form, "kernels": kernels, "stripes": stripes, "cache": cache}
    _check_settings(asked, threads=threads, batch=batch)
    example = Example.of(example_inputs)
    if size_of(example, 1 if cache else 0) == 0:
        raise WrongModel("the example is empty: pass one with at least one row")
    with leaving_no_trace(module):
        run(module, example)
    if not secateur_engine.available(kernels):
        return Compiled(
            None,
            module,
            [
                "the compiled engine is missing or lacks these kernels; the model runs in torch, and zeros do not make it faster"
            ],
        )
    how: dict[str, Any] = {"form": form, "kernels": kernels, "stripes": stripes, "batch": batch, "cache": cache}
    how["threads"] = threads or torch.get_num_threads()
    engine = _built(module, example, values=values, **how)
    if cache and 2 * (length := size_of(example, 1) or 1) <= cache:
        exact = engine if values == "float32" else _built(module, example, values="float32", **how)
        check_session(module, sized(example, min(length, engine.programs[0].size), 1), exact.session())
    if tune:
        _tune(engine)
    return Compiled(engine, None)


def load(path: str | os.PathLike[str], *, threads: int = 1, kernels: str = "") -> Compiled:
    """Read what `Compiled.save` wrote; the model's class is not needed.

    Raises:
        BadFile: the file is damaged, truncated, hostile, or no compiled model.
    """
    try:
        engine = secateur_engine.load(path, threads=threads, kernels=kernels)
    except secateur_engine.BadFile as error:
        raise BadFile(str(error)) from None
    for one in engine.programs:
        one._outside = runner(engine.arrays)
    return Compiled(engine, None)


def _built(module: nn.Module, example: Example, *, threads: int, kernels: str, **how: Any) -> secateur_engine.Model:
    width = _WIDTHS[secateur_engine.available(kernels)]
    document, constants = document_of(module, example, threads=threads, width=width, **how)
    outside = runner(constants.arrays)
    return secateur_engine.Model(document, constants.arrays, threads=threads, kernels=kernels, outside=outside).built()


def _module_of(model: nn.Module | Pruned) -> nn.Module:
    module = model.model if isinstance(model, Pruned) else model
    if not isinstance(module, nn.Module):
        raise WrongModel(
            f"a {type(module).__name__} is no model: pass a torch.nn.Module, or what secateur.prune returned"
        )
    return copy.deepcopy(module).eval()


def _check_settings(asked: Mapping[str, Any], *, threads: Any, batch: Any) -> None:
    words = {"values": _VALUES, "form": (None, "1", "2", "4", "dense"), "kernels": ("", *_WIDTHS)}
    for name, known in words.items():
        check_choice(name, asked[name], known)
    stripes = asked["stripes"]
    if not isinstance(stripes, int) or stripes < 0:
        raise UnknownName(
            f"stripes={stripes!r} is not known: pass True, False, or how many rows a stripe has, such as 8"
        )
    check_number("cache", asked["cache"], 0, whole=True)
    check_number("threads", 1 if threads is None else threads, 1, whole=True)
    sizes = batch if isinstance(batch, tuple) else (1 if batch is None else batch,) * 2
    whole = len(sizes) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)
    if not whole or not 1 <= sizes[0] <= sizes[1]:
        raise WrongModel(f"batch={batch!r} is no size and no range of sizes: pass a number such as 8, or (1, 8)")


def _tune(engine: secateur_engine.Model) -> None:
    for one in engine.programs:
        built = engine.engine(one)
        for k, step in enumerate(one.said["steps"]):
            if step[0] == "product":
                step[2][1:6] = built.tune(k, 5)
