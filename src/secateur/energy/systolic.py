"""Energy of one inference on a systolic array, from how often data moves (Yang, Zhu & Liu 2019, ICLR, section 3 and appendix A).

    E = sum over layers of  E_weights(nnz) + E_inputs + E_computation(nnz)             nnz: weights that are not zero; P: output positions

    weights      nnz * (ceil(P/rows) * cache + P * register) + dram * (min(nnz, cache size) + ceil(P/rows) * max(0, nnz - cache size))
    inputs       taps * (ceil(d/columns) * cache + d * register) + dram * (inputs + rows read twice + outputs)           (convolution)
                 c * (ceil(d/columns) * cache + d * register) + dram * (outputs + c once, or ceil(d/columns) times beyond the cache)
    computation  mac * P * nnz

So given the inputs of a layer, energy is linear in its non-zero weights, with a bend where they overflow their cache. The defaults are the
paper's: an array and caches like Eyeriss (12 x 14, 100 kB for inputs, 8 kB for weights, 16 bit), a multiplication with its registers 3, main memory
200, cache 6, register 1; in units of about one picojoule. Bias, norms, activations and pooling cost nothing here.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from secateur.errors import BadSparsity
from secateur.examples import Example, device_of, leaving_no_trace, run
from secateur.layers import facts_of

__all__ = ["SystolicArray", "Use", "uses_of"]


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


@final
@dataclass(frozen=True, kw_only=True)
class SystolicArray:
    """The hardware, in numbers: sizes in values (16 bit each), energies in picojoules.

    >>> SystolicArray().slopes(Use(name="fc.weight", out_dim=0, in_dim=1, weights=20, positions=1, inputs=5, outputs=4))
    (210.0, 210.0)
    """

    rows: int = 12
    columns: int = 14
    input_cache: int = 100 * 1024 // 2
    weight_cache: int = 8 * 1024 // 2
    mac: float = 3.0
    dram: float = 200.0
    cache: float = 6.0
    register: float = 1.0

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.input_cache, self.weight_cache) < 1:
            raise BadSparsity(f"{self}: an array has at least one row and column, and caches of at least one value")

    def slopes(self, use: Use) -> tuple[float, float]:
        """What one more non-zero weight costs while the weights fit into their cache, and beyond."""
        passes = math.ceil(use.positions / self.rows)
        moved = passes * self.cache + use.positions * (self.register + self.mac)
        return moved + self.dram, moved + self.dram * (passes if use.taps else 1)

    def of_weights(self, use: Use, kept: int | None = None) -> float:
        """Weights and computation, with ``kept`` weights that are not zero."""
        kept, (near, far) = use.weights if kept is None else kept, self.slopes(use)
        return near * min(kept, self.weight_cache) + far * max(0, kept - self.weight_cache)

    def of_inputs(self, use: Use) -> tuple[float, float, float]:
        """What follows inputs and outputs together, inputs alone, and outputs alone."""
        passes = math.ceil(use.width / self.columns)
        if not use.taps:
            again = max(0, use.inputs - self.input_cache) * (passes - 1)
            both = use.inputs * (passes * self.cache + use.width * self.register)
            return both + self.dram * again, self.dram * use.inputs, self.dram * use.outputs
        both = use.taps * (passes * self.cache + use.width * self.register)
        held = max(use.kernel, self.input_cache // max(1, use.row))  # rows of the image that the cache holds
        bands = math.ceil(use.height / max(1, held - use.kernel + use.stride))
        twice = use.row * max(0, use.kernel - use.stride) * max(0, bands - 1)
        return both, self.dram * (use.inputs + twice), self.dram * use.outputs

    def energy(self, use: Use, kept: int | None = None) -> float:
        """All of it, in picojoules."""
        return self.of_weights(use, kept) + sum(self.of_inputs(use))


def uses_of(model: nn.Module, example_inputs: Any) -> tuple[Use, ...]:
    """Every call of a linear layer or convolution when ``model`` runs on the example.

    Raises:
        WrongModel: it does not run.
    """
    example, found = Example.of(example_inputs, device_of(model)), list[Use]()
    handles = [
        module.register_forward_hook(_noting(f"{path}.weight".lstrip("."), found))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        with leaving_no_trace(model):
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found)


def _noting(name: str, found: list[Use]) -> Any:
    return lambda module, args, out: found.extend(_used(name, module, args, out))


def _used(name: str, module: Any, args: Any, out: Tensor) -> Iterator[Use]:
    x, weight, facts = args[0], module.weight, facts_of(module)["weight"]
    kept = int(weight.detach().count_nonzero())
    if isinstance(module, nn.Linear):
        positions = out[0].numel() // out.shape[-1] if out.dim() > 1 else 1
        taps = positions * x.shape[-1] if positions > 1 else 0
        inputs, outputs = positions * x.shape[-1], positions * out.shape[-1]
        yield Use(
            name=name, out_dim=0, in_dim=1, weights=kept, positions=positions, inputs=inputs, outputs=outputs, taps=taps,
            width=out.shape[-1], row=x.shape[-1], height=positions,
        )  # fmt: skip
        return
    dims = len(module.kernel_size)
    image, made = x.shape[-dims:], out.shape[-dims:]
    channels, groups = module.in_channels, module.groups
    taps = channels * math.prod(_touched(sizes) for sizes in _axes(module, image, made))
    yield Use(
        name=name, out_dim=facts.out_dim, in_dim=facts.out_dim if groups > 1 else (facts.in_dim or 0), weights=kept,
        positions=math.prod(image if module.transposed else made), inputs=channels * math.prod(image),
        outputs=module.out_channels * math.prod(made), taps=taps, width=module.out_channels // groups,
        row=channels * math.prod(image[1:]), height=image[0], kernel=module.kernel_size[0], stride=module.stride[0],
    )  # fmt: skip


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
