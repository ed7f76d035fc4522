"""Weights that several layers share: one tensor, multiplied with what each of them takes in, so that all of it counts.

E(W') = sum over uses u, samples j    || W x_uj - W' x_uj ||^2      =>      H = sum over uses of H_u
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from secateur.errors import UnknownLayer
from secateur.facts import LayerFacts
from secateur.layers import facts_of
from secateur.layerwise.inflow import takes_part

__all__ = ["bias_of", "paths_of", "uses_of"]


def uses_of(model: nn.Module, targets: Mapping[str, LayerFacts]) -> dict[str, tuple[str, ...]]:
    """For each parameter the names under which layers hold it, its own first.

    Raises:
        UnknownLayer: one of its layers has no rule, or multiplies with it in another way than the first does.

    >>> one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    >>> other.weight = one.weight
    >>> uses_of(nn.Sequential(one, other), {"0.weight": LayerFacts(module="0", kind="linear")})
    {'0.weight': ('0.weight', '1.weight')}
    """
    holders: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module, attribute, parameter in _held(model):
        holders.setdefault(id(parameter), []).append((path, module, attribute))
    found = {}
    for name, facts in targets.items():
        own = model.get_submodule(facts.module)
        others = []
        for path, module, attribute in holders[id(model.get_parameter(name))]:
            other = f"{path}.{attribute}".lstrip(".")
            if module is own and attribute == name.rpartition(".")[2]:
                continue
            _refuse_unlike(name, facts, other, module, attribute)
            others.append(other)
        found[name] = (name, *others)
    return found


def paths_of(names: Sequence[str]) -> tuple[str, ...]:
    """Of the layers that hold the parameters ``names``."""
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))


def bias_of(model: nn.Module, uses: Sequence[str]) -> Tensor | None:
    """The bias that takes up the mean, where one bias belongs to the weight alone that layers hold as ``uses``."""
    layers = [model.get_submodule(path) for path in paths_of(uses)]
    bias = getattr(layers[0], "bias", None)
    plain = isinstance(layers[0], nn.Linear | nn.modules.conv._ConvNd) and uses[0].rpartition(".")[2] == "weight"
    if not plain or not isinstance(bias, Tensor):
        return None
    holders = [module for _, module, _, parameter in _held(model) if parameter is bias]
    return bias if {*map(id, holders)} <= {*map(id, layers)} and all(m.bias is bias for m in layers) else None


def _held(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Every parameter in every place; not in mere lists of parameters."""
    for path, module in model.named_modules():
        if not isinstance(module, nn.ParameterList | nn.ParameterDict):
            for attribute, parameter in module._parameters.items():
                if parameter is not None:
                    yield path, module, attribute, parameter


def _refuse_unlike(name: str, facts: LayerFacts, other: str, module: nn.Module, attribute: str) -> None:
    theirs = facts_of(module).get(attribute)
    if theirs is not None and takes_part(module) and replace(theirs, module="") == replace(facts, module=""):
        return
    raise UnknownLayer(
        f"{name!r} is shared with {other!r} of a {type(module).__name__}, where there is no rule for what it is multiplied with, or another one: "
        f"what that layer needs would not be seen; leave the weight alone with ignore=[{name!r}], or give each layer its own, "
        f"nn.Parameter({name}.detach().clone())"
    )
