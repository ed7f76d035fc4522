"""Peak memory of one forward pass: weights, buffers and the activations that live at the same time, in bytes.

Counted by watching every tensor that comes and goes while the model runs on the example, without gradients. Scratch space inside an
operation is not seen. The prediction takes activations to shrink like the widths of the layers that make them.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur.examples import Example, device_of, leaving_no_trace, run
from secateur.layers import facts_of
from secateur.pricing import Part

__all__ = ["PeakMemory"]


@final
@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Measure the most bytes that tensors hold at one time."""

    unit: str = "bytes"

    def measure(self, models: Sequence[nn.Module], example_inputs: Any) -> list[float]:
        """Run each model on the example and watch.

        Raises:
            WrongModel: a model does not run on the example.
        """
        return [float(_peak(model, example_inputs)) for model in models]

    def parts(self, model: nn.Module, example_inputs: Any) -> tuple[Part, ...]:
        """The weights, and the rest spread over the layers by the size of what they make."""
        tensors = [*model.named_parameters(), *model.named_buffers()]
        weights = [
            Part(t.numel() * t.element_size(), tuple((name, dim) for dim in range(t.dim()))) for name, t in tensors
        ]
        made = _made(model, example_inputs)
        rest = max(0.0, _peak(model, example_inputs) - sum(part.amount for part in weights))
        total = sum(made.values())
        return (*weights, *(Part(rest * size / total, (place,)) for place, size in made.items() if total))


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that are alive."""

    def __init__(self, standing: int, known: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = standing
        self.known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._see(tensor)
        self.peak = max(self.peak, self.now)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += nbytes
            weakref.finalize(storage, self._gone, key, nbytes)

    def _gone(self, key: int, nbytes: int) -> None:
        self.known.discard(key)
        self.now -= nbytes


def _peak(model: nn.Module, example_inputs: Any) -> int:
    example = _compact(Example.of(example_inputs, device_of(model)))
    own = [*model.parameters(), *model.buffers(), *(t for t in tree_leaves(example) if isinstance(t, Tensor))]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in own if t.layout == torch.strided}
    watch = _Watch(sum(storages.values()), set(storages))

    def call() -> Any:
        with watch:
            return model(*example.args, **example.kwargs)

    with leaving_no_trace(model):
        run(model, example, call)
    return watch.peak


def _compact(example: Example) -> Example:
    """Inputs that hold nothing else: ``images[:1]`` would count with all images."""
    return tree_map_only(Tensor, lambda t: t.detach().clone(), example)  # type: ignore[no-any-return]


def _made(model: nn.Module, example_inputs: Any) -> dict[tuple[str, int], float]:
    """How many bytes every layer with a weight makes, by the place of its output channels."""
    example, found = Example.of(example_inputs, device_of(model)), dict[tuple[str, int], float]()

    def note(place: tuple[str, int]) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor):
                found[place] = found.get(place, 0.0) + out.numel() * out.element_size()

        return hook

    handles = [
        module.register_forward_hook(note((f"{path}.{attribute}".lstrip("."), facts.out_dim)))
        for path, module in model.named_modules()
        for attribute, facts in facts_of(module).items()
        if facts.kind in ("linear", "conv")
    ]
    try:
        with leaving_no_trace(model):
            run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found
