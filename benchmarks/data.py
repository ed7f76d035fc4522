"""The data sets as whole tensors: small enough that no DataLoader is needed. ``README.md`` beside the data says what they are."""

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
WEIGHTS = Path.home() / ".cache" / "secateur-weights"  # packages that hold weights


@dataclass(frozen=True)
class Split:
    """Inputs and labels for training and testing."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def read_idx(path: Path) -> Tensor:
    """Read one gzipped IDX file."""
    with gzip.open(path) as file:
        raw = file.read()
    dims = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims)]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape).copy())


def load_mnist(data: Path = DATA, *, mean: float = 0.1307, std: float = 0.3081) -> Split:
    """All of MNIST, ``[N, 1, 28, 28]``, normalised."""
    return _idx_split(data / "mnist", mean, std)


def load_fashion(data: Path = DATA) -> Split:
    """All of Fashion-MNIST, ``[N, 1, 28, 28]``, normalised."""
    return _idx_split(data / "fashion_mnist", 0.286, 0.353)


def _idx_split(folder: Path, mean: float, std: float) -> Split:
    def images(part: str) -> Tensor:
        return (read_idx(folder / f"{part}-images-idx3-ubyte.gz").float().div_(255).sub_(mean) / std).unsqueeze(1)

    def labels(part: str) -> Tensor:
        return read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long()

    return Split(images("train"), labels("train"), images("t10k"), labels("t10k"))


def load_cifar(data: Path = DATA) -> Split:
    """The lossless part of CIFAR-10: 4,000 train and 1,000 test images, normalised as the pretrained ResNets want them."""
    file = np.load(data / "cifar10" / "cifar10_lossless_5k.npz")
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def images(key: str) -> Tensor:
        return (torch.from_numpy(file[key]).permute(0, 3, 1, 2).float() / 255 - mean) / std

    def labels(key: str) -> Tensor:
        return torch.from_numpy(file[key]).long()

    return Split(images("x_train"), labels("y_train"), images("x_test"), labels("y_test"))


def load_imdb(data: Path = DATA, *, length: int = 100) -> Split:
    """IMDB token ids, ``[N, length]``: the last ``length`` of the first 256 tokens of each review.

    Zeros stand in FRONT of short reviews, as in the TensorFlow example (``pad_sequences`` pads and cuts in front).
    """
    file = np.load(data / "imdb" / "imdb_tokens_v10k_t256.npz")

    def tokens(part: str) -> Tensor:
        x, lengths = file[f"x_{part}"].astype(np.int64), file[f"len_{part}"].astype(np.int64)
        out = np.zeros((len(x), length), np.int64)
        for row, (words, count) in enumerate(zip(x, lengths, strict=True)):
            last = words[: min(int(count), words.shape[0])][-length:]
            out[row, length - len(last) :] = last
        return torch.from_numpy(out)

    def labels(part: str) -> Tensor:
        return torch.from_numpy(file[f"y_{part}"].astype(np.int64))

    return Split(tokens("train"), labels("train"), tokens("test"), labels("test"))
