"""Two coupling rules of your own: one that ties channels and one that holds them.

``lab::swap`` exchanges the two halves of the channels, so halves stay where they are but move; ``lab::rank`` sorts channels,
so none of them may leave.

    python examples/own_coupling_rule.py
"""

import torch
from torch import Tensor, nn

import secateur as sc


@torch.library.custom_op("lab::swap", mutates_args=())
def swap(x: Tensor) -> Tensor:
    """Exchange the halves of the channels, ``[batch, channels]``."""
    return x.roll(x.shape[1] // 2, 1)


@torch.library.custom_op("lab::rank", mutates_args=())
def rank(x: Tensor) -> Tensor:
    """Sort the channels."""
    return x.sort(1).values


swap.register_fake(torch.empty_like)
rank.register_fake(torch.empty_like)


class Net(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.last(getattr(torch.ops.lab, self.name)(self.first(x)))


example = torch.randn(3, 4)
try:
    sc.couple(Net("swap"), example)
except sc.errors.UnknownOperation as error:
    print(f"Without a rule: {error}\n")


@sc.coupling.rule("lab::swap")
def _(dye, out, x):  # noqa: ARG001 - a rule has the arguments of its operation, after its result
    for layer in dye.on(x, 1):  # channel k of either half leaves with channel k of the other, so halves stay equal
        first, second = layer.chunk(2, 1)
        dye.tie(first, second)
    return tuple(layer.roll(x.shape[1] // 2, 1) for layer in dye.of(x))  # what moves elements is run on the colours


@sc.coupling.rule("lab::rank")
def _(dye, out, x):  # noqa: ARG001 - a rule has the arguments of its operation, after its result
    for layer in dye.on(x, 1):
        dye.freeze(layer, "is sorted")
    return ()


for name in ("swap", "rank"):
    coupling = sc.couple(Net(name), example)
    print(coupling.explain("first"), "\n")

pruned = sc.prune(Net("swap"), granularity="channel", sparsity=0.5, example_inputs=example)
print("narrowed:", pruned.model.first, pruned.model.last)
