"""Tables that are looked up: entries stay, columns are channels."""

from typing import Any

from secateur.coupling.dyeing import Dye, rule
from secateur.coupling.layering import spread


@rule("embedding")
def _(dye: Dye, out: Any, weight: Any, index: Any, *args: Any, **kwargs: Any) -> Any:
    for layer in dye.on(weight, 0):
        dye.freeze(layer, "is looked up by index")
    return tuple(spread(dye.along(la, 1), out.shape, out.dim() - 1) for la in dye.on(weight, 1))


@rule("_embedding_bag", "embedding_bag", "_embedding_bag_forward_only")
def _(dye: Dye, out: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
    for layer in dye.on(weight, 0):
        dye.freeze(layer, "is looked up by index")
    return [tuple(spread(dye.along(la, 1), out[0].shape, 1) for la in dye.on(weight, 1)), (), (), ()]
