"""The networks of the tables, as their sources define them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def make_mlp() -> nn.Module:
    """784-40-20-10 without biases (32,360 weights): the MLP of the WoodFisher, CBS and CHITA repositories."""
    linear = [nn.Linear(a, b, bias=False) for a, b in ((784, 40), (40, 20), (20, 10))]
    return nn.Sequential(nn.Flatten(), linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])


def make_lenet_300_100() -> nn.Module:
    """LeNet-300-100 (266,610 parameters)."""
    sizes = ((784, 300), (300, 100), (100, 10))
    linear = [nn.Linear(a, b) for a, b in sizes]
    return nn.Sequential(nn.Flatten(), linear[0], nn.ReLU(), linear[1], nn.ReLU(), linear[2])


def make_lenet_5() -> nn.Module:
    """LeNet-5 as in Caffe: 20 and 50 filters of 5x5, 500 units (431,080 parameters, 430,500 of them weights)."""
    convolutions = (nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2))
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10))


def make_convnet() -> nn.Module:
    """The convnet of the TensorFlow toolkit's tutorial: 12 filters of 3x3, pool, dense 10 (20,410 parameters)."""
    return nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12 * 13 * 13, 10))


class SentimentLSTM(nn.Module):
    """Embedding, LSTM, one logit: the IMDB example of the TensorFlow toolkit."""

    def __init__(self, vocabulary: int = 10_000, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.out = nn.Linear(width, 1)
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)  # as Keras does
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.xavier_uniform_(parameter)
            elif name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
        self.lstm.bias_ih_l0.data[width : 2 * width] = 1.0  # the forget gate starts open

    def forward(self, tokens: Tensor) -> Tensor:
        """Give one logit per review."""
        states, _ = self.lstm(self.embedding(tokens))
        return self.out(states[:, -1]).squeeze(1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads with zeros (option A), so it has no parameters."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.grows = stride != 1 or inside != outside

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.grows:
            pad = y.shape[1] // 4
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """ResNet-20 (``blocks=3``) or ResNet-56 (``blocks=9``) of He et al. 2016 for CIFAR-10."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, 16, blocks, 1)
        self.layer2 = self._layer(16, 32, blocks, 2)
        self.layer3 = self._layer(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _layer(inside: int, outside: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inside, outside, stride)
        return nn.Sequential(first, *(BasicBlock(outside, outside, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Give ten logits."""
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def load_lenet_300_100(path: str) -> nn.Module:
    """The LeNet-300-100 of the L-OBS authors (inputs in [0, 1]), whatever its layers are called, in evaluation mode."""
    model = make_lenet_300_100()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


def load_resnet(path: str, blocks: int) -> nn.Module:
    """A pretrained CIFAR ResNet, in evaluation mode."""
    model = CifarResNet(blocks)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()
