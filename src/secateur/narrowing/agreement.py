"""Whether a narrowed network computes what its masked self does, decided on the example.

First on the outputs as they are. Where they differ, in float64, since rounding alone reorders the nearly equal boxes of a detector.
Where even there the masked model does not reproduce itself with weights changed by a part in 10^10, because scores are equal and
any order is right, what every layer computes decides.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from secateur.coupling.running import results_of, run
from secateur.cutting import cut_
from secateur.errors import NarrowingFailed
from secateur.gradients import evaluating
from secateur.graphs import copied
from secateur.structure import Structure

__all__ = ["comparable", "difference", "disagreement", "disagreement_on_reflection", "narrowed_outputs", "outputs_of"]


def outputs_of(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """Every tensor that ``model`` returns, less its state, in eval mode; the random state is left as it was."""
    generator = torch.get_rng_state()
    with torch.no_grad(), evaluating(model):
        outputs = results_of(model, run(model, example_inputs))
    torch.set_rng_state(generator)
    return [t.clone() for t in outputs]


def narrowed_outputs(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """`outputs_of`, with an error that says what failed.

    Raises:
        NarrowingFailed: the model does not run.
    """
    try:
        return outputs_of(model, example_inputs)
    except Exception as error:
        raise NarrowingFailed(
            f"the narrowed model does not run ({type(error).__name__}: {str(error).strip()[:200]}); the model was left as it was. "
            "Find the layer with couple(model, example_inputs).explain('...') and exclude it with ignore=[...]"
        ) from error


def disagreement(expected: list[Tensor], found: list[Tensor], tolerance: float) -> str:
    """What differs, in words; "" where nothing does."""
    shapes = [tuple(t.shape) for t in expected], [tuple(t.shape) for t in found]
    if shapes[0] != shapes[1]:
        return f"outputs changed shape from {shapes[0]} to {shapes[1]}"
    for k, (a, b) in enumerate(zip(expected, found, strict=True)):
        apart = difference(a, b) if tolerance < math.inf else 0.0
        if not apart <= tolerance:
            return (
                f"output {k} of the narrowed model differs from the masked one by {apart:.1e} (at most {tolerance:.0e} is allowed), "
                "so a rule is wrong for this network"
            )
    return ""


def comparable(outputs: list[Tensor]) -> bool:
    """Whether there is a finite number among the floats, or there are no floats."""
    floats = [t for t in outputs if t.is_floating_point() and t.numel()]
    return not floats or any(bool(torch.isfinite(t).any()) for t in floats)


def difference(expected: Tensor, found: Tensor) -> float:
    """The largest difference of finite values, relative to the largest value; 0 for integers."""
    if not expected.is_floating_point() or not expected.numel():
        return 0.0
    finite = torch.isfinite(expected)
    if not finite.any():
        return 0.0
    return float((expected - found)[finite].abs().max() / expected[finite].abs().max().clamp_min(1e-12))


def disagreement_on_reflection(
    masked: nn.Module, structure: Structure, example_inputs: Any, tolerance: float, before: str
) -> str:
    """`disagreement` once more, in float64, and its reason where the network itself never gives the same twice."""
    failure = _in_double(masked, structure, example_inputs, tolerance, before)
    if failure and _draws(masked, example_inputs):
        return (
            "the network draws random numbers in eval mode (two seeds give two outputs), so whether the narrowed one computes the same "
            "cannot be told; draw none while self.training is False"
        )
    return failure


def _draws(model: nn.Module, example_inputs: Any) -> bool:
    first = outputs_of(model, example_inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)
        second = outputs_of(model, example_inputs)
    return any(difference(a, b) > 0 for a, b in zip(first, second, strict=True))


def _in_double(masked: nn.Module, structure: Structure, example_inputs: Any, tolerance: float, before: str) -> str:
    """`disagreement` of copies in float64; ``before`` again where the model does not run in float64."""
    inputs = tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, example_inputs)
    try:
        model = copied(masked).double()
        with _watching_layers(model) as layers:
            expected = outputs_of(model, inputs)
        nudged = outputs_of(_nudged(model), inputs)
        cut_(model, structure)
        with _watching_layers(model) as narrow_layers:
            found = outputs_of(model, inputs)
    except Exception:  # noqa: BLE001 - code with a type of numbers written into it
        return before
    failure = disagreement(expected, found, tolerance)
    if failure and disagreement(expected, nudged, tolerance) and _alike(layers, narrow_layers, tolerance):
        return ""
    return failure


def _nudged(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    other = copied(model)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.mul_(1 + 1e-10 * noise.to(parameter.device))
    return other


def _alike(expected: dict[str, Tensor], found: dict[str, Tensor], tolerance: float) -> bool:
    same = [name for name, t in expected.items() if name in found and found[name].shape == t.shape]
    return bool(same) and all(difference(expected[name], found[name]) <= tolerance for name in same)


@contextmanager
def _watching_layers(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What every layer with parameters returns when it is called first."""
    layers: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                layers.setdefault(name, out.clone())

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()
