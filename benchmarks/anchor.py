"""The exactness anchor: magnitude pruning of the MLP 784-40-20-10 without biases, beside an independent numpy oracle.

Published one-shot rows exist for a checkpoint of this network (WoodFisher, CBS and CHITA repositories; MNIST normalised with
.1307/.3081). Without it the script trains a network of the same kind and shows that Secateur's masks and accuracies are those
of "sort all weights, keep the largest" written in five lines of numpy.

    python -m benchmarks.anchor                                  # trains its own network
    python -m benchmarks.anchor --checkpoint mlpnet.pth.tar      # prunes yours
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks.data import Split, load_mnist
from benchmarks.nets import make_mlp
from benchmarks.record import options, record
from benchmarks.training import accuracy, train

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
SHAPES = ((40, 784), (20, 40), (10, 20))


def load_mlp(path: Path) -> nn.Module:
    """Read a checkpoint of this MLP, whatever its layers are called.

    Old checkpoints wrap their layers (``module.fc1._layer.weight``) and nest the tensors (``model_state_dict``), so the three
    matrices are found by their shapes, which are all different. For a checkpoint with pickled objects beside its tensors,
    ``torch.load`` refuses and names them; allow those you trust with ``torch.serialization.add_safe_globals``.
    """
    tensors = _tensors_in(torch.load(path, map_location="cpu", weights_only=True))
    model = make_mlp()
    for layer, shape in zip((m for m in model if isinstance(m, nn.Linear)), SHAPES, strict=True):
        found = [name for name, tensor in tensors.items() if tuple(tensor.shape) == shape and "mask" not in name]
        if len(found) != 1:
            raise SystemExit(
                f"{path} has {len(found)} tensors of shape {list(shape)} and needs 1; it has: {', '.join(tensors)}"
            )
        layer.weight.data.copy_(tensors[found[0]])
    return model.eval()


def _tensors_in(tree: Any, prefix: str = "") -> dict[str, Tensor]:
    """All tensors under ``model_state_dict`` or ``state_dict`` (or anywhere, where there is neither), with dotted names."""
    if not isinstance(tree, Mapping):
        return {prefix: tree} if isinstance(tree, Tensor) else {}
    for key in ("model_state_dict", "state_dict"):
        if key in tree:
            return _tensors_in(tree[key], key)
    return {
        name: t
        for key, inside in tree.items()
        for name, t in _tensors_in(inside, f"{prefix}.{key}".lstrip(".")).items()
    }


def oracle_masks(weights: list[np.ndarray], sparsity: float, scope: str) -> list[np.ndarray]:
    """Sort and keep the largest; earlier weights win ties."""
    if scope == "layer":
        return [oracle_masks([weight], sparsity, "global")[0] for weight in weights]
    flat = np.concatenate([np.abs(weight).ravel() for weight in weights])
    keep = np.zeros(flat.size, bool)
    keep[np.argsort(-flat, kind="stable")[: round((1 - sparsity) * flat.size)]] = True
    cuts = np.cumsum([weight.size for weight in weights])[:-1]
    return [part.reshape(weight.shape) for part, weight in zip(np.split(keep, cuts), weights, strict=True)]


def oracle_accuracy(weights: list[np.ndarray], images: np.ndarray, labels: np.ndarray) -> float:
    """The network in numpy."""
    hidden = images.reshape(len(images), -1)
    for weight in weights[:-1]:
        hidden = np.maximum(hidden @ weight.T, 0)
    return 100 * float(((hidden @ weights[-1].T).argmax(1) == labels).mean())


def compare_once(model: nn.Module, data: Split, scope: str, sparsity: float) -> dict[str, Any]:
    """Prune with Secateur and with the oracle.

    Raises:
        AssertionError: masks, counts or accuracies differ.
    """
    pruned = sc.prune(model, "magnitude", sparsity=sparsity, scope=scope)
    weights = [parameter.detach().numpy() for parameter in model.parameters()]
    masks = oracle_masks(weights, sparsity, scope)
    for name, expected in zip(pruned.masks, masks, strict=True):
        assert np.array_equal(pruned.masks[name].numpy(), expected), f"the mask of {name} differs from the oracle's"
    ours = accuracy(pruned.model, data.x_test, data.y_test)
    masked = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
    theirs = oracle_accuracy(masked, data.x_test.numpy(), data.y_test.numpy())
    assert abs(ours - theirs) < 0.005, f"{ours} differs from the oracle's {theirs}"
    kept = [int(mask.sum()) for mask in masks]
    assert pruned.masks.kept == sum(kept)
    if scope == "global":
        assert sum(kept) == round((1 - sparsity) * 32_360)
    return {"scope": scope, "sparsity": sparsity, "kept": sum(kept), "kept_per_layer": kept, "accuracy": ours}


def with_ties(model: nn.Module) -> nn.Module:
    """The network with its weights rounded to 64ths, so that thousands of magnitudes are equal."""
    tied = make_mlp()
    tied.load_state_dict({name: (tensor * 64).round() / 64 for name, tensor in model.state_dict().items()})
    return tied.eval()


def main() -> None:
    """Compare and write ``results/anchor.json``."""
    parser = options(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="prune this network instead of training one")
    args = parser.parse_args()
    data = load_mnist(args.data)
    torch.manual_seed(0)
    model = (
        load_mlp(args.checkpoint) if args.checkpoint else train(make_mlp(), data, epochs=1 if args.quick else 2, seed=0)
    )
    rows = []
    for weights, net in (("trained", model), ("trained, rounded to 64ths", with_ties(model))):
        dense = accuracy(net, data.x_test, data.y_test)
        rows.append({"weights": weights, "scope": "dense", "sparsity": 0.0, "kept": 32_360, "accuracy": dense})
        rows += [
            {"weights": weights} | compare_once(net, data, scope, sparsity)
            for scope in ("global", "layer")
            for sparsity in SPARSITIES
        ]
    for row in rows:
        print(f"{row['weights']:26} {row['scope']:7} {row['sparsity']:.2f} {row['kept']:6} {row['accuracy']:.2f}")
    print("every mask equals the numpy oracle's, every count is exact")
    if not args.quick and not args.checkpoint:
        record("anchor", rows, out=args.out, network="MLP 784-40-20-10 without biases", oracle="identical masks")


if __name__ == "__main__":
    main()
