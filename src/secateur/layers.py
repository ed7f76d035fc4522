"""Which parameters of a layer are weights, and how they are laid out: the one table over layer types.

An unknown layer type is left alone and named in the report; teach Secateur about yours from outside:

    @secateur.layers.facts_of.register
    def _(layer: MyLinear) -> dict[str, LayerFacts]:
        return {"weight": LayerFacts(kind="linear")}
"""

from collections.abc import Iterable
from functools import singledispatch

from torch import nn

from secateur.facts import LayerFacts

__all__ = ["facts_of", "made_by"]


@singledispatch
def facts_of(layer: nn.Module) -> dict[str, LayerFacts]:
    """Return the prunable parameters that ``layer`` holds itself, by attribute name; empty for types without a rule."""
    known = _BY_CLASS_NAME.get(f"{type(layer).__module__}.{type(layer).__qualname__}")
    return dict(known) if known else {}


def made_by(model: nn.Module, targets: Iterable[str]) -> dict[str, int]:
    """The weights among ``targets`` whose layers make channels, each with the dimension that holds them."""
    chosen, made = set(targets), {}
    for path, module in model.named_modules():
        for attribute, facts in facts_of(module).items():
            name = f"{path}.{attribute}".lstrip(".")
            if name in chosen:
                made[name] = 1 if facts.kind == "embedding" else facts.out_dim
    return made


@facts_of.register
def _(_layer: nn.Linear) -> dict[str, LayerFacts]:
    return {"weight": LayerFacts(kind="linear")}


@facts_of.register
def _(_layer: nn.Bilinear) -> dict[str, LayerFacts]:
    return {"weight": LayerFacts(kind="linear")}  # [out, in1, in2]


@facts_of.register(nn.modules.conv._ConvNd)
def _(layer: nn.modules.conv._ConvNd) -> dict[str, LayerFacts]:
    if layer.transposed:
        return {"weight": LayerFacts(kind="conv", out_dim=1, in_dim=0, groups=layer.groups, out_in_groups=True)}
    return {"weight": LayerFacts(kind="conv", groups=layer.groups)}


@facts_of.register(nn.Embedding)
@facts_of.register(nn.EmbeddingBag)
def _(_layer: nn.Module) -> dict[str, LayerFacts]:
    return {"weight": LayerFacts(kind="embedding")}  # [entries, width]: an entry is an output row


@facts_of.register(nn.RNNBase)
@facts_of.register(nn.RNNCellBase)
def _(layer: nn.Module) -> dict[str, LayerFacts]:
    own = dict(layer.named_parameters(recurse=False))
    return {name: LayerFacts(kind="recurrent") for name, p in own.items() if p.dim() == 2}


@facts_of.register
def _(layer: nn.MultiheadAttention) -> dict[str, LayerFacts]:
    names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    own = dict(layer.named_parameters(recurse=False))
    return {name: LayerFacts(kind="attention") for name in names if name in own}


_BY_CLASS_NAME = {  # types from packages that Secateur does not import
    "transformers.pytorch_utils.Conv1D": {"weight": LayerFacts(kind="linear", out_dim=1, in_dim=0)},
}
