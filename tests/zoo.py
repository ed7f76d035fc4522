"""Small models, one for every way in which layers keep weights, each with an input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["ZOO", "HuggingConv1D", "Tied", "Twice", "loss_of", "make"]


class HuggingConv1D(nn.Module):
    """``[in, out]`` weights, as in ``transformers.pytorch_utils.Conv1D``."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.1)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Tied(nn.Module):
    """A language model whose embedding is its head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(self.embedding(x))))


class Twice(nn.Module):
    """One module under two names, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.again(torch.relu(self.first(x)))))


class Recurrent(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Attention(nn.Module):
    def __init__(self, **options: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.sizes = options

    def forward(self, x: Tensor) -> Tensor:
        key, value = x[..., : self.sizes.get("kdim", 8)], x[..., : self.sizes.get("vdim", 8)]
        return self.attention(x, key, value, need_weights=False)[0]


def _ids() -> Tensor:
    return torch.arange(12).reshape(3, 4)


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), lambda: torch.randn(3, 8)),
    "conv1d": (lambda: nn.Conv1d(4, 8, 3), lambda: torch.randn(2, 4, 9)),
    "conv2d": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        lambda: torch.randn(2, 4, 6, 6),
    ),
    "conv3d": (lambda: nn.Conv3d(4, 4, 2), lambda: torch.randn(1, 4, 3, 3, 3)),
    "grouped": (lambda: nn.Conv2d(8, 8, 3, groups=2), lambda: torch.randn(1, 8, 4, 4)),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), lambda: torch.randn(1, 8, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 8, 3), lambda: torch.randn(1, 4, 3, 3)),
    "transposed_grouped": (lambda: nn.ConvTranspose2d(8, 8, 3, groups=2), lambda: torch.randn(1, 8, 3, 3)),
    "embedding": (lambda: nn.Embedding(12, 8), _ids),
    "embedding_bag": (lambda: nn.EmbeddingBag(12, 8), _ids),
    "lstm": (lambda: Recurrent(nn.LSTM(8, 12, 2, batch_first=True)), lambda: torch.randn(2, 5, 8)),
    "lstm_projected": (
        lambda: Recurrent(nn.LSTM(8, 12, proj_size=4, bidirectional=True)),
        lambda: torch.randn(5, 2, 8),
    ),
    "gru": (lambda: Recurrent(nn.GRU(8, 8, bidirectional=True)), lambda: torch.randn(5, 2, 8)),
    "rnn": (lambda: Recurrent(nn.RNN(8, 8)), lambda: torch.randn(5, 2, 8)),
    "lstm_cell": (lambda: Recurrent(nn.LSTMCell(8, 8)), lambda: torch.randn(2, 8)),
    "gru_cell": (lambda: nn.GRUCell(8, 8), lambda: torch.randn(2, 8)),
    "attention": (Attention, lambda: torch.randn(2, 5, 8)),
    "attention_separate": (lambda: Attention(kdim=4, vdim=6), lambda: torch.randn(2, 5, 8)),
    "tied": (Tied, _ids),
    "twice": (Twice, lambda: torch.randn(3, 8)),
    "hugging": (lambda: nn.Sequential(HuggingConv1D(16, 8), nn.ReLU(), nn.Linear(16, 4)), lambda: torch.randn(3, 8)),
    "parametrised": (
        lambda: nn.Sequential(weight_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 4)),
        lambda: torch.randn(3, 8),
    ),
}


def make(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A fresh model of the zoo and an input, the same for the same seed; the global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, example = ZOO[name]
        return model(), example()


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """A smooth loss that reaches every weight."""
    return model(batch).square().mean()
