"""Networks of `benchmarks.engine`: torchvision's ResNet-50 and MobileNetV2 and four encoder layers of BERT-base, randomly pruned.

Speed does not depend on values, only on where the zeros are. As in the published recipes the stem, depthwise convolutions and the
classifiers of the image networks stay dense.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["example_of", "network", "prune_randomly_"]


class Encoder(nn.Module):
    """One post-norm encoder layer."""

    def __init__(self, width: int = 768, heads: int = 12, hidden: int = 3072) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (m(x).view(b, t, self.heads, d // self.heads).transpose(1, 2) for m in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d)
        x = self.norm1(x + self.o(mixed))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


def prune_randomly_(model: nn.Module, sparsity: float, height: int, kept: Callable[[str, nn.Module], bool]) -> None:
    """Zero the same fraction of every layer but those ``kept``, in blocks of ``height`` output rows."""
    generator = torch.Generator().manual_seed(1)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or kept(name, module):
            continue
        weight = module.weight.data
        rows = weight.shape[0] // height
        scores = torch.rand(rows, weight[0].numel(), generator=generator)
        gone = torch.zeros(scores.numel(), dtype=torch.bool)
        gone[scores.flatten().topk(round(scores.numel() * sparsity)).indices] = True
        mask = ~gone.view(rows, -1).repeat_interleave(height, 0).view(weight.shape)
        module.weight.data = weight * mask / math.sqrt(1 - sparsity)


def network(name: str) -> nn.Module:
    """``resnet50-90``, ``resnet50-90-4x1``, ``mobilenet_v2-85``, ``bert-90``: a network and its sparsity in percent."""
    kind, percent, *blocks = name.split("-")
    sparsity, height = int(percent) / 100, 4 if blocks else 1
    torch.manual_seed(0)
    if kind == "bert":
        model: nn.Module = nn.Sequential(*[Encoder() for _ in range(4)])
        prune_randomly_(model, sparsity, height, lambda *_: False)
        return model.eval()
    import torchvision

    model = getattr(torchvision.models, kind)(weights=None)
    for module in model.modules():
        if isinstance(module, torchvision.models.resnet.Bottleneck):
            nn.init.constant_(module.bn3.weight, 0.3)

    def kept(path: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) or path == "conv1" or module.groups > 1 or module.in_channels == 3

    prune_randomly_(model, sparsity, height, kept)
    return model.eval()


def example_of(name: str, batch: int) -> Tensor:
    """An input."""
    generator = torch.Generator().manual_seed(3)
    shape = (batch, 128, 768) if name.startswith("bert") else (batch, 3, 224, 224)
    return torch.randn(shape, generator=generator)
