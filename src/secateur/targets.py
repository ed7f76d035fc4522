"""Which parameters a method may prune: everything the layer table knows, less what the user excludes."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor, nn

from secateur.errors import BadScores, NothingToPrune, UnknownLayer, UnknownName
from secateur.facts import LayerFacts
from secateur.layers import facts_of

__all__ = ["Ignore", "find_targets", "ignored_parameters", "left_alone", "refuse_unfinite", "refuse_unusable"]

Ignore: TypeAlias = str | type[nn.Module] | nn.Module


def find_targets(
    model: nn.Module, *, ignore: Ignore | Iterable[Ignore] = (), include_bias: bool = False
) -> dict[str, LayerFacts]:
    r"""List the prunable parameters of ``model`` with their layout, in the order of ``named_parameters``.

    A parameter that several layers share (tied weights) is listed once, under its first name.

    Args:
        model: any module.
        ignore: what to leave alone: names of modules or parameters, globs (``"*.head"``), regular expressions
            (``"re:layers\.0\..*"``), module types, or modules themselves. A module stands for all that is inside it.
        include_bias: list vectors (biases) of the same layers too.

    Raises:
        NothingToPrune: nothing is left, and why.
        UnknownName: an entry of ``ignore`` matches nothing in this model.
        UnknownLayer: ``torch.nn.utils.prune`` holds some of the weights.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> list(find_targets(model, ignore=["2"]))
    ['0.weight']
    """
    known = _known(model, include_bias=include_bias)
    ignored = ignored_parameters(model, ignore)
    _refuse_held_by_torch(model, ignored)
    found = {}
    for name, parameter in model.named_parameters():
        if name in known and name not in ignored:
            _refuse_unusable(name, parameter)
            found[name] = known[name]
    if not found:
        raise NothingToPrune(_why_nothing(model, known, ignored))
    return found


def refuse_unfinite(model: nn.Module, names: Iterable[str]) -> None:
    """A ranking would name whatever layer reads a broken one, and NaN agrees with NaN when outputs are compared.

    Args:
        model: any module.
        names: of parameters and buffers; what it has not is passed over.

    Raises:
        BadScores: one holds NaN or infinity.
    """
    own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in sorted(set(names) & own.keys()):
        bad = int((~own[name].detach().isfinite()).sum())
        if bad:
            raise BadScores(
                f"{bad} of {own[name].numel()} numbers of {name!r} are NaN or infinite: look at where they come from (a checkpoint, a "
                f"training that diverged), or leave that layer alone with ignore=[{name!r}]"
            )


def left_alone(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """Name the weights (two dimensions or more) that are not in ``targets``."""
    chosen = set(targets)
    return [name for name, p in model.named_parameters() if p.dim() > 1 and name not in chosen]


def ignored_parameters(model: nn.Module, ignore: Ignore | Iterable[Ignore]) -> set[str]:
    """Names of the parameters that ``ignore`` stands for; a tied parameter under all of its names.

    Raises:
        UnknownName: an entry matches nothing in this model.
    """
    entries = list(ignore) if isinstance(ignore, Iterable) and not isinstance(ignore, str | nn.Module) else [ignore]
    return _ignored(model, entries)


def _known(model: nn.Module, *, include_bias: bool) -> dict[str, LayerFacts]:
    known: dict[str, LayerFacts] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        own = facts_of(module)
        for attribute, facts in own.items():
            known.setdefault(f"{path}.{attribute}".lstrip("."), replace(facts, module=path))
        if own and include_bias:
            for attribute, parameter in module.named_parameters(recurse=False):
                if attribute not in own and parameter.dim() == 1:
                    vector = LayerFacts(module=path, kind="vector", in_dim=None)
                    known.setdefault(f"{path}.{attribute}".lstrip("."), vector)
    return known


def _ignored(model: nn.Module, entries: Sequence[Ignore]) -> set[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    unwanted: set[int] = set()  # identities, so that a tied weight is left alone under all its names
    for entry in entries:
        hit_modules = [m for path, m in modules.items() if _matches(entry, path, m)]
        hit_parameters = [p for name, p in parameters.items() if isinstance(entry, str) and _matches(entry, name, None)]
        if not hit_modules and not hit_parameters:
            some = ", ".join(path for path in list(modules)[1:9]) or "none"
            raise UnknownName(
                f"ignore={entry!r} matches nothing in {type(model).__name__}; its modules are: {some}, ..."
            )
        unwanted.update(id(p) for m in hit_modules for p in m.parameters())
        unwanted.update(id(p) for p in hit_parameters)
    return {name for name, p in parameters.items() if id(p) in unwanted}


def _matches(entry: Ignore, path: str, module: nn.Module | None) -> bool:
    if isinstance(entry, str):
        if entry.startswith("re:"):
            return bool(path) and re.fullmatch(entry[3:], path) is not None
        return bool(path) and (path == entry or fnmatchcase(path, entry))
    if isinstance(entry, type):
        return isinstance(module, entry)
    return module is entry


def refuse_unusable(model: nn.Module, *, ignore: Ignore | Iterable[Ignore] = ()) -> None:
    """Refuse what no method can prune, whatever its layers are: weights without values, or held by ``torch.nn.utils.prune``.

    Raises:
        NothingToPrune: a weight has no values, or ``ignore`` leaves none.
        UnknownName: an entry of ``ignore`` matches nothing in this model.
        UnknownLayer: ``torch.nn.utils.prune`` holds some of the weights.
    """
    ignored = ignored_parameters(model, ignore)
    _refuse_held_by_torch(model, ignored)
    free = {name: p for name, p in model.named_parameters() if name not in ignored}
    for name, parameter in free.items():
        _refuse_unusable(name, parameter)
    if not free:
        raise NothingToPrune(_why_nothing(model, _known(model, include_bias=False), ignored))


def _refuse_unusable(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise NothingToPrune(f"{name!r} has no shape yet (a lazy layer): run the model once on an example, then prune")
    if parameter.device == torch.device("meta"):
        raise NothingToPrune(f"{name!r} is on the meta device and has no values: load weights first, then prune")


def _refuse_held_by_torch(model: nn.Module, ignored: set[str]) -> None:
    """Its masks are buffers; a ``weight_orig`` alone is somebody else's, such as spectral norm's."""
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)} - ignored
    masks = {name for name, _ in model.named_buffers()}
    held = sorted(
        name.removesuffix("_orig")
        for name in names
        if name.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" in masks
    )
    if held:
        more = f" and {len(held) - 4} more" if len(held) > 4 else ""
        raise UnknownLayer(
            f"torch.nn.utils.prune holds {', '.join(held[:4])}{more} as weight_orig and weight_mask: call "
            "secateur.integrations.torch_prune.absorb_(model) first; it returns the masks and keeps the zeros"
        )


def _why_nothing(model: nn.Module, known: dict[str, LayerFacts], ignored: set[str]) -> str:
    if any(".parametrizations." in f".{name}" for name, _ in model.named_parameters()):
        return (
            "the weights are parametrised (torch.nn.utils.parametrize), so they are computed and not stored: make them plain first "
            "with torch.nn.utils.parametrize.remove_parametrizations(module, name)"
        )
    norms = sorted(
        {
            type(h).__name__
            for m in model.modules()
            for h in m._forward_pre_hooks.values()
            if hasattr(h, "compute_weight")
        }
    )
    if norms:
        return (
            f"the weights are computed for every call by {' and '.join(norms)}, not stored: make them plain first with "
            "torch.nn.utils.remove_weight_norm(module) or remove_spectral_norm(module)"
        )
    if known and ignored:
        return f"all {len(known)} prunable parameters of {type(model).__name__} are excluded by ignore=: {', '.join(sorted(ignored)[:8])}"
    kinds = sorted({type(m).__name__ for m in model.modules() if next(m.parameters(recurse=False), None) is not None})
    return (
        f"{type(model).__name__} has no layer that Secateur knows how to prune (parameters sit in: {', '.join(kinds) or 'none'}); "
        "teach it yours with @secateur.layers.facts_of.register"
    )
