"""Measured latency of one forward pass on the example, in milliseconds; models are timed in turns.

To search widths, every layer is timed alone on what it really gets, whole and with half of its inputs and outputs, and

    t(in, out) = a + b*in + c*out + d*in*out             (in, out: the fractions left)

is put through the four times, a to d not negative (the bilinear model of Yang et al. 2019, ECC, eq. 3, for time). Of what the whole network takes beyond
those, weights that no layer could be timed alone with (`nn.MultiheadAttention`, LSTM) get a share for their multiply-accumulates, at the
speed of the timed layers; the rest goes to layers by the size of what they make. The narrowed network is then timed for real, and
corrects the prediction.
"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.examples import Example, device_of, leaving_no_trace, run
from secateur.layers import facts_of
from secateur.pricing import Part
from secateur.profiling.macs import count_macs, macs_by_weight
from secateur.profiling.timing import measure, using_threads

__all__ = ["Latency"]


@final
@dataclass(frozen=True, kw_only=True)
class Latency:
    """Measure medians.

    Args:
        seconds: about how long to time each model.
        layer_seconds: about how long to time each width of a layer.
        threads: with how many threads; None: as torch is set.
    """

    seconds: float = 2.0
    layer_seconds: float = 0.04
    threads: int | None = None
    unit: str = "ms"

    def measure(self, models: Sequence[nn.Module], example_inputs: Any) -> list[float]:
        """The median time of each model.

        Raises:
            WrongModel: a model does not run on the example.
        """
        calls = []
        for model in models:
            example = Example.of(example_inputs, device_of(model))
            with leaving_no_trace(model):
                run(model, example)
            calls.append(lambda model=model, example=example: model(*example.args, **example.kwargs))
        device = device_of(models[0]) or torch.device("cpu")
        with ExitStack() as stack:
            for model in models:
                stack.enter_context(leaving_no_trace(model))
            stack.enter_context(using_threads(self.threads))
            return [found.median_ms for found in measure(calls, seconds=self.seconds, device=device.type)]

    def parts(self, model: nn.Module, example_inputs: Any) -> tuple[Part, ...]:
        """Four parts for every layer that could be timed alone, and its share of the rest."""
        seen = _inputs(model, example_inputs)
        known: dict[tuple[Any, ...], tuple[float, ...]] = {}
        parts: list[Part] = []
        made: dict[tuple[str, int], float] = {}
        with using_threads(self.threads), torch.no_grad():
            for layer in seen:
                if layer.key not in known:
                    known[layer.key] = _bilinear(layer, self.layer_seconds)
                rows, columns = (layer.weight, layer.out_dim), (layer.weight, layer.in_dim)
                places: tuple[tuple[tuple[str, int], ...], ...] = ((), (columns,), (rows,), (rows, columns))
                parts += [Part(amount, place) for amount, place in zip(known[layer.key], places, strict=True)]
                made[rows] = made.get(rows, 0.0) + layer.made
        whole, timed = self.measure([model], example_inputs)[0], sum(part.amount for part in parts)
        parts += _by_work(model, example_inputs, {layer.weight for layer in seen}, timed, whole)
        rest, total = max(0.0, whole - sum(part.amount for part in parts)), sum(made.values())
        return (*parts, *(Part(rest * size / total, (place,)) for place, size in made.items() if total))


def _by_work(model: nn.Module, example_inputs: Any, alone: set[str], timed: float, whole: float) -> list[Part]:
    """What weights cost that were not timed ``alone``: their multiply-accumulates at the speed of the others, within the ``whole``."""
    example = Example.of(example_inputs, device_of(model))
    with leaving_no_trace(model):
        work = macs_by_weight(run(model, example, lambda: count_macs(model, *example)), model)
    others = {name: macs for name, macs in work.items() if name not in alone}
    left, rest = sum(others.values()), max(0.0, whole - timed)
    if not left:
        return []
    done = sum(work.values()) - left
    rate = min(timed / done, rest / left) if timed > 0 and done else rest / left
    return [Part(macs * rate, ((name, 0), (name, 1))) for name, macs in others.items()]


@dataclass(frozen=True)
class _Layer:
    """A layer as it is called in the network."""

    weight: str
    out_dim: int
    in_dim: int
    module: nn.Module
    x: Tensor
    made: int

    @property
    def key(self) -> tuple[Any, ...]:
        shown = repr(self.module) if isinstance(self.module, nn.modules.conv._ConvNd) else type(self.module).__name__
        return (shown, tuple(self.module.weight.shape), tuple(self.x.shape))  # type: ignore[arg-type]


def _inputs(model: nn.Module, example_inputs: Any) -> list[_Layer]:
    example, found = Example.of(example_inputs, device_of(model)), list[_Layer]()

    def note(name: str, out_dim: int, in_dim: int) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                found.append(_Layer(name, out_dim, in_dim, module, args[0].detach().clone(), out.numel()))

        return hook

    handles = [
        module.register_forward_hook(note(f"{path}.weight".lstrip("."), facts.out_dim, facts.in_dim))
        for path, module in model.named_modules()
        for attribute, facts in facts_of(module).items()
        if facts.kind in ("linear", "conv") and attribute == "weight" and facts.in_dim is not None
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        with leaving_no_trace(model):
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _bilinear(layer: _Layer, seconds: float) -> tuple[float, ...]:
    """``a, b, c, d`` of ``a + b*in + c*out + d*in*out`` through the times of the whole layer and of its halves, in milliseconds."""
    halves = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.5, 0.5)]
    calls, fractions = [], []
    for f_in, f_out in halves:
        module, x, true_in, true_out = _resized(layer, f_in, f_out)
        calls.append(lambda module=module, x=x: module(x))
        fractions.append((1.0, true_in, true_out, true_in * true_out))
    times = [found.median_ms for found in measure(calls, seconds=seconds)]
    design = torch.tensor(fractions, dtype=torch.float64)
    return tuple(not_negative(design, torch.tensor(times, dtype=torch.float64)).tolist())


def not_negative(design: Tensor, times: Tensor) -> Tensor:
    """Least squares without negative numbers: a clock that was disturbed shall not say that less work takes longer.

    All subsets of the columns ``[times, unknowns]`` are tried, which a few unknowns allow.

    >>> not_negative(torch.tensor([[1.0, 1.0], [1.0, 0.5]]), torch.tensor([1.0, 3.0]))  # a line through them would fall
    tensor([2.0000, 0.0000])
    """
    unknowns, best, least = design.shape[1], design.new_zeros(design.shape[1]), float(times.square().sum())
    for size in range(unknowns, 0, -1):
        for chosen in combinations(range(unknowns), size):
            part = design[:, list(chosen)]
            solved = torch.linalg.lstsq(part, times[:, None], driver="gelsd").solution[:, 0]
            error = float((part @ solved - times).square().sum())
            if bool((solved >= 0).all()) and error < least:
                least, best = error, torch.zeros_like(best).index_copy_(0, torch.tensor(chosen), solved)
    return best


def _resized(layer: _Layer, f_in: float, f_out: float) -> tuple[nn.Module, Tensor, float, float]:
    """A layer of the same kind with these fractions of inputs and outputs, what it takes in, and the fractions it really has."""
    module, weight = copy.deepcopy(layer.module), layer.module.get_parameter("weight")
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        groups = max(1, round(module.groups * min(f_in, f_out)))
        out = module.out_channels // module.groups * groups
        inner = module.in_channels // module.groups * groups
        module.groups, module.in_channels, module.out_channels = groups, inner, out
        kept = weight[:inner] if module.transposed else weight[:out]
        module.weight = nn.Parameter(kept.detach().clone(), requires_grad=False)
        module.bias = None if module.bias is None else nn.Parameter(module.bias[:out].detach().clone())
        share = out / (weight.shape[1] * layer.module.groups if module.transposed else weight.shape[0])  # type: ignore[operator]
        return module, layer.x.narrow(-layer.x.dim() + 1, 0, inner).contiguous(), 1.0, float(share)
    rows, columns = weight.shape[layer.out_dim], weight.shape[layer.in_dim]
    out, inner = max(1, round(rows * f_out)), max(1, round(columns * f_in))
    module.weight = nn.Parameter(
        weight.detach().narrow(layer.out_dim, 0, out).narrow(layer.in_dim, 0, inner).contiguous(), requires_grad=False
    )
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        module.bias = nn.Parameter(bias.detach()[:out].clone(), requires_grad=False)
    if isinstance(module, nn.modules.conv._ConvNd):
        module.in_channels, module.out_channels = inner, out
        axis = layer.x.dim() - len(module.kernel_size) - 1
    else:
        axis = layer.x.dim() - 1
    return module, layer.x.narrow(axis, 0, inner).contiguous(), inner / columns, out / rows
