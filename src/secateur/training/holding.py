"""Keep zeros exactly zero while a model trains.

Momentum, Adam moments, weight decay and averaging all revive pruned weights if one only masks once. Three things together hold:
gradients are masked as they arrive (so clipping, momentum and Adam never see a pruned weight), weights are masked again right
after every ``optimizer.step()`` (whatever the optimizer does), and copies that are watched (EMA) are masked whenever masks
change. No parameter is renamed, replaced or wrapped, so ``state_dict`` keys, ``deepcopy`` and pickling work as before.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.masks import Masks

__all__ = ["Hold", "hold"]


class Hold:
    """The handle that `hold` returns; `release` lets go, also as a context manager."""

    def __init__(self, model: nn.Module, masks: Masks, optimizer: Any, *, mask_gradients: bool) -> None:
        self.model, self.mask_gradients = model, mask_gradients
        self.masks = masks
        self._copies: list[nn.Module] = []
        self._removed: list[tuple[nn.Parameter, Tensor]] = []
        self._gradient_hooks: list[Any] = []
        self.renew(masks)  # refuses wrong masks, so it comes before any hook
        self._step_hook = optimizer.register_step_post_hook(self._after_step) if optimizer is not None else None

    def renew(self, masks: Masks) -> None:
        """Change the masks; weights and watched copies are zeroed at once."""
        masks.check(self.model)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        self.masks = Masks({name: mask.to(parameters[name].device) for name, mask in masks.items()})
        self._removed = [(parameters[name], ~mask) for name, mask in self.masks.items()]
        self._drop_gradient_hooks()
        if self.mask_gradients:
            self._gradient_hooks = [
                parameter.register_post_accumulate_grad_hook(_gradient_mask(removed))  # type: ignore[no-untyped-call]
                for parameter, removed in self._removed
                if parameter.requires_grad
            ]
        self.apply_()

    def watch(self, *copies: nn.Module) -> "Hold":
        """Hold copies of the model as well, such as an EMA or ``AveragedModel``; they need no optimizer."""
        self._copies += [self._unwrapped(copy) for copy in copies]
        self.apply_()
        return self

    def apply_(self) -> None:
        """Zero what is not kept, in the model and in every watched copy."""
        for model in (self.model, *self._copies):
            self.masks.apply_(model)

    def release(self) -> None:
        """Stop holding. Weights stay as they are; calling it twice is harmless."""
        self._drop_gradient_hooks()
        if self._step_hook is not None:
            self._step_hook.remove()
            self._step_hook = None

    def __enter__(self) -> "Hold":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        for parameter, removed in self._removed:
            parameter.masked_fill_(removed, 0)

    def _unwrapped(self, copy: nn.Module) -> nn.Module:
        """The model inside ``AveragedModel`` and the like, told by its parameter names."""
        inner = getattr(copy, "module", None)
        names = {name for name, _ in copy.named_parameters(remove_duplicate=False)}
        return inner if isinstance(inner, nn.Module) and not self.masks.keys() <= names else copy

    def _drop_gradient_hooks(self) -> None:
        for handle in self._gradient_hooks:
            handle.remove()
        self._gradient_hooks = []


def hold(
    model: nn.Module,
    masks: Masks,
    optimizer: Any = None,
    *,
    mask_gradients: bool = True,
    copies: Iterable[nn.Module] = (),
) -> Hold:
    """Keep the weights that ``masks`` removes at exactly zero from now on.

    Args:
        model: the module that trains; changed in place (its masked weights become zero).
        masks: what is kept, by parameter name.
        optimizer: any ``torch.optim.Optimizer`` over the model's parameters. Without one, masked gradients alone keep a
            *fresh* elementwise optimizer (SGD, Adam, AdamW) from moving a zero.
        mask_gradients: whether gradients of removed weights are zeroed too. Turn it off for methods in which removed weights
            keep learning.
        copies: averaged copies (EMA) to hold as well.

    Returns:
        A handle with ``release()``, ``renew(masks)`` and ``watch(copy)``.

    Raises:
        WrongModel: the masks belong to another model.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    >>> handle = hold(layer, Masks({"weight": torch.tensor([[True, False]])}), optimizer)
    >>> for _ in range(3):
    ...     layer(torch.ones(1, 2)).sum().backward()
    ...     optimizer.step()
    >>> layer.weight[0, 1].item()
    0.0
    >>> handle.release()
    """
    handle = Hold(model, masks, optimizer, mask_gradients=mask_gradients)
    return handle.watch(*copies)


def _gradient_mask(removed: Tensor) -> Callable[[Tensor], None]:
    @torch.no_grad()
    def zero_gradient(parameter: Tensor) -> None:
        if parameter.grad is not None and not parameter.grad.is_sparse:
            parameter.grad.masked_fill_(removed, 0)

    return zero_gradient
