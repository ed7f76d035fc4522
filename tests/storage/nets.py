"""Small models with everything that a state can hold."""

import torch
from torch import nn

import secateur as sc


class Net(nn.Module):
    """Convolution, batch norm, a tied pair, a buffer that is stored and one that is not."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.embed = nn.Embedding(40, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("scratch", torch.ones(5), persistent=False)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
                self.norm.running_var.copy_(torch.rand(8, generator=generator))


def pruned(sparsity: float = 0.9, granularity: str = "unstructured") -> sc.Pruned:
    if granularity != "unstructured":
        return sc.prune(Net(seed=1), granularity=granularity, ignore=["conv"])
    return sc.prune(Net(seed=1), sparsity=sparsity)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
