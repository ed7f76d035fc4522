"""Load: check everything, then fill. A model is only touched after every tensor of the file was found sound.

What is allocated is bounded by the shapes of the model that is filled, or, without a model, by a stated limit.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from secateur.columns import expand
from secateur.cutting import cut_
from secateur.errors import BadFile
from secateur.masks import Masks
from secateur.narrowing.narrow import remember_structure_
from secateur.narrowing.recapturing import recaptured
from secateur.packing.bits import count_nonzero
from secateur.packing.document import Document
from secateur.report import Profile, Pruned, Report
from secateur.storage.container import Container, opened
from secateur.storage.slots import slots_of
from secateur.storage.stored import APART, Stored, mask_key, stored_tensors
from secateur.structure import Structure

__all__ = ["load", "read_tensors"]

_EXPANSION, _ALWAYS = 256, 16 << 20  # a file may grow to 256 times its size and 16 MB without being asked
_REPORT = TypeAdapter(Report)


def load(path: str | os.PathLike[str], fresh_model: nn.Module) -> Pruned:
    """Fill ``fresh_model`` with the weights of a file, and return it with its masks and receipt.

    Args:
        path: a file of `save`, or a plain safetensors file with all of the model's names.
        fresh_model: a new instance of the model's class, ``sc.load("m.safetensors", MyNet())``. Its parameters and buffers
            are written in place; their types and devices stay. Nothing is written when anything is wrong. The file of a
            narrowed model narrows it first: pass an instance of the *original* class and size. Where narrowing fell back to a
            graph, the graph is captured anew and shares the parameters of ``fresh_model``.

    Returns:
        ``Pruned(model, masks, report)``; the model is ``fresh_model``, or its narrowed graph. A file without masks gives empty
        ones; one without a receipt gives a receipt that only counts.

    Raises:
        BadFile: the file is damaged.
        WrongModel: the file is sound and does not fit the model; names and shapes are given.
        OSError: it cannot be opened.
    """
    with opened(path) as file:
        said = file.document.structure if file.document else None
        structure = None if said is None else Structure.from_dict(said)
        if structure and structure.graph:
            fresh_model = recaptured(fresh_model, structure.graph)
        undo = cut_(fresh_model, structure) if structure else None
        try:
            loaded = _fill(file, fresh_model, structure)
        except BaseException:
            if undo:
                undo()
            raise
    if structure:
        remember_structure_(fresh_model, structure)
    return loaded


def _fill(file: Container, model: nn.Module, structure: Structure | None) -> Pruned:
    slots = slots_of(model)
    found, document = stored_tensors(file), file.document or Document()
    apart = {mask_key(name): found[mask_key(name)] for name, word in document.masks.items() if word in APART}
    wanted = _with_ties(found, document, apart)
    pairs = slots.pairs(wanted, str(file.path))
    report = _report(document)
    _check_limit([found[mask_key(name)] for name, word in document.masks.items() if word == "alone"], file, None)
    _each(Stored.check, [*{id(stored): stored for stored, _ in pairs}.values(), *apart.values()])
    _each(_fill_, pairs)
    filled = {**slots.direct, **slots.handed}
    masks = {
        name: structure.mask(name)
        if word == "structure" and structure
        else _mask(word, filled.get(name), apart.get(mask_key(name)))
        for name, word in document.masks.items()
    }
    slots.hand_over()
    return Pruned(model, Masks(masks), report or _counted(model), structure)


def read_tensors(path: str | os.PathLike[str], *, limit: int | None = None) -> dict[str, Tensor]:
    """Read every tensor of a file, dense and of its own type; masks are left out. No model is needed.

    Args:
        path: a file of `save`, or a plain safetensors file.
        limit: the most bytes that the tensors may take together; by default 256 times the size of the file and 16 MB.

    Raises:
        BadFile: the file is damaged, or its tensors take more than ``limit``.
        OSError: it cannot be opened.
    """
    with opened(path) as file:
        found, document = stored_tensors(file), file.document or Document()
        apart = {mask_key(name) for name, word in document.masks.items() if word in APART}
        chosen = [stored for name, stored in found.items() if name not in apart]
        _check_limit(chosen, file, limit)
        _each(Stored.check, chosen)
        tensors = dict(zip((stored.name for stored in chosen), _each(Stored.tensor, chosen), strict=True))
        return tensors | {alias: tensors[name] for alias, name in document.tied.items()}


def _with_ties(found: Mapping[str, Stored], document: Document, apart: Iterable[str]) -> dict[str, Stored]:
    own = {name: stored for name, stored in found.items() if name not in apart}
    return own | {alias: found[name] for alias, name in document.tied.items() if alias not in apart}


def _fill_(pair: tuple[Stored, Tensor]) -> None:
    stored, slot = pair
    stored.fill_(slot)


def _each(do: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Do it to all, as many at once as torch has threads; numpy and torch let go of the interpreter while they work."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(do, items))


def _mask(word: str, weights: Tensor | None, stored: Tensor | Stored | None) -> Tensor:
    held = stored.tensor() if isinstance(stored, Stored) else None
    if word == "alone" or weights is None:
        assert held is not None
        return held
    kept = torch.ones_like(weights, dtype=torch.bool) if word == "all" else weights != 0
    return kept if held is None else kept ^ held.to(kept.device)


def _check_limit(stored: list[Stored], file: Container, limit: int | None) -> None:
    allowed = _EXPANSION * file.nbytes + _ALWAYS if limit is None else limit
    needed = sum(one.entry.nbytes for one in stored)
    if needed > allowed:
        raise BadFile(
            f"the tensors take {needed:,} bytes and the file {file.nbytes:,}; if you trust it, pass read_tensors(limit={needed}) "
            f"(the limit was {allowed:,})"
        )


def _report(document: Document) -> Report | None:
    if document.report is None:
        return None
    try:
        return _REPORT.validate_python(expand(document.report))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadFile(f"the receipt is wrong at {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _counted(model: nn.Module) -> Report:
    weights = list(model.parameters())
    counted = Profile(
        model=type(model).__name__,
        params=sum(weight.numel() for weight in weights),
        nonzeros=sum(count_nonzero(weight, signed=False) for weight in weights),
    )
    return Report(before=counted, after=counted, notes=("the file holds no receipt",))
