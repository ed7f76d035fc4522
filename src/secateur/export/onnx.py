"""ONNX: `torch.onnx` writes beside the target, ONNX Runtime reads it again, and the file takes its place only if both agree."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.coupling.running import run, tensors_of
from secateur.errors import ExportFailed, NeedsPackage
from secateur.gradients import evaluating
from secateur.replacing import replacing
from secateur.report import Pruned

__all__ = ["Exported", "onnx"]

_LARGEST = 1 << 31  # bytes of weights; beyond it a single ONNX file cannot be


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written and checked.

    Args:
        path: where it is.
        nbytes: its size.
        difference: the largest difference to torch on the example, relative to the largest value of that output.
    """

    path: Path
    nbytes: int
    difference: float


def onnx(
    model: nn.Module | Pruned,
    example_inputs: Any,
    path: str | os.PathLike[str],
    *,
    tolerance: float = 1e-4,
    **options: Any,
) -> Exported:
    """Write one ONNX file whose outputs on the example equal torch's; the model is exported in eval mode and left as it was.

    Args:
        model: what pruning returned, or any model.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        path: the file; an old one is replaced, and only by a file that was checked.
        tolerance: largest difference, relative to the largest value of each output.
        **options: passed to ``torch.onnx.export``, e.g. ``opset_version=18`` or ``dynamic_shapes=...``.

    Raises:
        NeedsPackage: ``onnx`` or ``onnxruntime`` is not installed.
        ExportFailed: the model cannot be expressed in ONNX, is too large for one file, or ONNX Runtime computes something else;
            nothing is left behind.
        OSError: the file cannot be written.
    """
    _need("onnx", "onnxruntime")
    network = model.model if isinstance(model, Pruned) else model
    _check_size(network)
    target = Path(os.path.realpath(path))
    with evaluating(network), torch.no_grad(), replacing(target) as beside:
        expected = tensors_of(run(network, example_inputs))
        _write(network, example_inputs, beside, options)
        difference = _difference(expected, _replay(beside, example_inputs), tolerance)
    return Exported(path=Path(path), nbytes=target.stat().st_size, difference=difference)


def _need(*packages: str) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise NeedsPackage(
            f"ONNX export is written with torch.onnx and checked with ONNX Runtime, but {' and '.join(missing)} is not installed: "
            "pip install 'secateur[export]'"
        )


def _check_size(model: nn.Module) -> None:
    nbytes = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    if nbytes >= _LARGEST:
        raise ExportFailed(
            f"the model has {nbytes / 2**30:.1f} GiB of weights and a single ONNX file holds less than 2 GiB; "
            "export it with torch.onnx.export(..., external_data=True)"
        )


def _write(model: nn.Module, example_inputs: Any, path: Path, options: dict[str, Any]) -> None:
    """With the exporter that sees the program where its package is installed; else with the one that records a trace."""
    named = example_inputs if isinstance(example_inputs, dict) else {}
    given = () if named else example_inputs
    args = tuple(given) if isinstance(given, tuple | list) else (given,)
    seeing = find_spec("onnxscript") is not None
    own: dict[str, Any] = {"external_data": False} if seeing else {}
    try:
        with _quiet():
            torch.onnx.export(
                model, args, os.fspath(path), kwargs=named or None, dynamo=seeing, verbose=False, **own, **options
            )
    except OSError:
        raise
    except Exception as error:
        raise ExportFailed(
            f"{type(model).__name__} cannot be written as ONNX ({type(error).__name__}: {str(error).strip()[:400]}); "
            "torch.onnx.export(model, ..., dynamo=True) says more"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn about their own insides, and print; what matters is checked afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _replay(path: Path, example_inputs: Any) -> list[Tensor]:
    import onnxruntime

    choice = onnxruntime.SessionOptions()
    choice.log_severity_level = 3
    choice.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), choice, providers=["CPUExecutionProvider"])
        feed = _feed([one.name for one in session.get_inputs()], example_inputs)
        return [torch.from_numpy(value) for value in session.run(None, feed)]
    except ExportFailed:
        raise
    except Exception as error:
        raise ExportFailed(
            f"ONNX Runtime cannot run the file ({type(error).__name__}: {str(error).strip()[:400]})"
        ) from error


def _feed(names: list[str], example_inputs: Any) -> dict[str, Any]:
    """Inputs by name where they have one, else by place."""
    if isinstance(example_inputs, dict) and set(names) <= set(example_inputs):
        return {name: example_inputs[name].detach().cpu().numpy() for name in names}
    tensors = tensors_of(example_inputs)
    if len(names) != len(tensors):
        raise ExportFailed(
            f"the ONNX file takes {len(names)} inputs ({', '.join(names)}) and the example has {len(tensors)} tensors, so they "
            "cannot be matched; leave inputs that the model does not use out of the example"
        )
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, tensors, strict=True)}


def _difference(expected: list[Tensor], found: list[Tensor], tolerance: float) -> float:
    shapes = [[list(t.shape) for t in side] for side in (expected, found)]
    if shapes[0] != shapes[1]:
        raise ExportFailed(f"torch gives outputs of shapes {shapes[0]} and ONNX Runtime of {shapes[1]}")
    worst = max((_apart(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
    if not worst <= tolerance:
        raise ExportFailed(
            f"ONNX Runtime differs from torch by {worst:.1e} on the example (at most {tolerance:.0e} is allowed); no file was written"
        )
    return worst


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value; infinite where only one of them is finite."""
    a, b = a.detach().cpu().double(), b.double()
    finite = torch.isfinite(a)
    if not a.numel():
        return 0.0
    if not torch.equal(finite, torch.isfinite(b)) or not torch.equal(
        a[~finite].nan_to_num(0), b[~finite].nan_to_num(0)
    ):
        return float("inf")
    a, b = a[finite], b[finite]
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) if a.numel() else 0.0
