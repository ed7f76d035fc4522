"""How often the layers of a network use their weights, inputs and outputs: what an energy model is told.

Counted while the network runs on an example, with a rule for each type of layer; teach yours:

    @secateur.energy.uses.used.register
    def _(layer: MyLayer, call: Call) -> Iterator[Use]: ...
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any, NamedTuple, final

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from secateur.examples import Example, device_of, leaving_no_trace, run
from secateur.layers import facts_of
from secateur.narrow_attention import NarrowAttention

__all__ = ["Call", "Use", "used", "uses_of"]


@final
@dataclass(frozen=True, kw_only=True)
class Use:
    """One call of a layer with one example of the batch.

    Args:
        name: the weight's.
        out_dim, in_dim: the dimensions of the weight that hold outputs and inputs; the same one where a group has one of each.
        weights: how many of the weights are not zero.
        positions: output positions (1 for a linear layer on a vector).
        inputs, outputs: values read and made.
        taps: values that the kernel touches, each as often as it does; 0 for a linear layer.
        width: outputs that share an input (outputs divided by convolution groups).
        row: input values in a row of the image; `height` rows, `kernel` and `stride` along them.
        steps: times that wait for each other; positions are divided among them.
    """

    name: str
    out_dim: int
    in_dim: int
    weights: int
    positions: int
    inputs: int
    outputs: int
    taps: int = 0
    width: int = 1
    row: int = 0
    height: int = 0
    kernel: int = 1
    stride: int = 1
    steps: int = 1


class Call(NamedTuple):
    """A call of a layer.

    Args:
        prefix: what comes before the names of its weights.
        args, kwargs: what it was given, with the batch.
        out: what it gave.
    """

    prefix: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Any

    @property
    def first(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


def uses_of(model: nn.Module, example_inputs: Any) -> tuple[Use, ...]:
    """Every call of a layer with weights when ``model`` runs on the example: linear, convolution, recurrent, attention.

    Raises:
        WrongModel: it does not run.
    """
    example, found = Example.of(example_inputs, device_of(model)), list[Use]()

    def note(path: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        found.extend(used(module, Call(f"{path}." if path else "", args, kwargs, out)))

    handles = [
        module.register_forward_hook(partial(note, path), with_kwargs=True) for path, module in model.named_modules()
    ]
    try:
        with leaving_no_trace(model):
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)


@singledispatch
def used(module: nn.Module, call: Call) -> Iterator[Use]:
    """What a call of ``module`` uses; nothing of types without a rule."""
    if "weight" in facts_of(module) and facts_of(module)["weight"].kind == "linear" and isinstance(call.out, Tensor):
        yield _tokens(f"{call.prefix}weight", module, "weight", _positions(call.out))  # Conv1D of transformers


@used.register
def _(module: nn.Linear, call: Call) -> Iterator[Use]:
    yield _tokens(f"{call.prefix}weight", module, "weight", _positions(call.out))


@used.register
def _(module: nn.MultiheadAttention, call: Call) -> Iterator[Use]:
    told = dict(zip(("query", "key", "value"), call.args, strict=False)) | dict(call.kwargs)
    given = [told[name] for name in ("query", "key", "value")]
    lengths = [x.shape[-2] if x.dim() < 3 or module.batch_first else x.shape[0] for x in given]
    if "in_proj_weight" in facts_of(module):  # three thirds, each with tokens of its own: their mean
        yield _tokens(f"{call.prefix}in_proj_weight", module, "in_proj_weight", math.ceil(sum(lengths) / 3))
    else:
        for name, length in zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), lengths, strict=True):
            yield _tokens(f"{call.prefix}{name}", module, name, length)
    if not isinstance(module, NarrowAttention):  # which calls it as a module
        yield _tokens(f"{call.prefix}out_proj.weight", module.out_proj, "weight", lengths[0])


@used.register
def _(module: nn.RNNBase, call: Call) -> Iterator[Use]:
    times = _times(module, call.first)
    wide = module.proj_size or module.hidden_size
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            end = f"_l{layer}{suffix}"
            yield _at_times(f"{call.prefix}weight_ih{end}", getattr(module, f"weight_ih{end}"), times, reads=True)
            states = getattr(module, f"weight_hh{end}")
            yield _at_times(
                f"{call.prefix}weight_hh{end}", states, times, steps=times, makes=0 if module.proj_size else wide
            )
            if module.proj_size:
                projection = getattr(module, f"weight_hr{end}")
                yield _at_times(f"{call.prefix}weight_hr{end}", projection, times, steps=times, makes=wide)


@used.register
def _(module: nn.RNNCellBase, call: Call) -> Iterator[Use]:
    yield _at_times(f"{call.prefix}weight_ih", module.weight_ih, 1, reads=True)
    yield _at_times(f"{call.prefix}weight_hh", module.weight_hh, 1, reads=True, makes=module.hidden_size)


@used.register
def _(module: nn.modules.conv._ConvNd, call: Call) -> Iterator[Use]:
    x, facts = call.first, facts_of(module)["weight"]
    dims = len(module.kernel_size)
    image, made = x.shape[-dims:], call.out.shape[-dims:]
    channels, groups = module.in_channels, module.groups
    taps = channels * math.prod(_touched(sizes) for sizes in _axes(module, image, made))
    yield Use(
        name=f"{call.prefix}weight", out_dim=facts.out_dim, in_dim=facts.out_dim if groups > 1 else (facts.in_dim or 0),
        weights=_kept(module.weight), positions=math.prod(image if module.transposed else made), inputs=channels * math.prod(image),
        outputs=module.out_channels * math.prod(made), taps=taps, width=module.out_channels // groups,
        row=channels * math.prod(image[1:]), height=image[0], kernel=module.kernel_size[0], stride=module.stride[0],
    )  # fmt: skip


def _kept(weight: Tensor) -> int:
    return int(weight.detach().count_nonzero())


def _positions(out: Tensor) -> int:
    """Vectors of one example of the batch."""
    return out[0].numel() // out.shape[-1] if out.dim() > 1 else 1


def _tokens(name: str, module: nn.Module, attribute: str, positions: int) -> Use:
    """A matrix that every vector of a sequence is multiplied with."""
    weight, facts = getattr(module, attribute), facts_of(module)[attribute]  # which may be computed
    out_dim, in_dim = facts.out_dim, 1 if facts.in_dim is None else facts.in_dim
    wide, narrow = weight.shape[out_dim], weight.numel() // weight.shape[out_dim]
    return Use(
        name=name, out_dim=out_dim, in_dim=in_dim, weights=_kept(weight), positions=positions, inputs=positions * narrow,
        outputs=positions * wide, taps=positions * narrow if positions > 1 else 0, width=wide, row=narrow, height=positions,
    )  # fmt: skip


def _at_times(name: str, weight: Tensor, times: int, *, reads: bool = False, makes: int = 0, steps: int = 1) -> Use:
    """A matrix of a recurrent layer: ``reads`` its inputs from memory, or from where the last step left them; writes ``makes`` values a step."""
    wide, narrow = weight.shape
    return Use(
        name=name, out_dim=0, in_dim=1, weights=_kept(weight), positions=times, inputs=times * narrow if reads else 0,
        outputs=times * makes, taps=times * narrow, width=wide, row=narrow, height=times, steps=steps,
    )  # fmt: skip


def _times(module: nn.RNNBase, x: Tensor | PackedSequence) -> int:
    """Steps of one example of the batch; of sequences of many lengths the mean."""
    if isinstance(x, PackedSequence):
        return math.ceil(len(x.data) / int(x.batch_sizes[0]))
    return x.shape[1] if x.dim() == 3 and module.batch_first else x.shape[0]


def _axes(module: Any, image: Any, made: Any) -> list[tuple[int, ...]]:
    pads = [0 if isinstance(module.padding, str) else module.padding[axis] for axis in range(len(image))]
    if module.padding == "same":
        pads = [d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    short, long = (made, image) if not module.transposed else (image, made)
    return list(zip(short, long, module.kernel_size, module.stride, pads, module.dilation, strict=True))


def _touched(sizes: tuple[int, ...]) -> int:
    """How often kernel positions fall on the image along one axis; those on the padding read nothing."""
    out, size, kernel, stride, pad, dilation = sizes
    starts = range(-pad, -pad + out * stride, stride)
    return sum(0 <= start + k * dilation < size for start in starts for k in range(kernel))
