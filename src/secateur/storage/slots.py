"""Slots: the tensors of a model that a file fills, and which stored tensor fits which."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import WrongModel
from secateur.packing.document import DTYPES
from secateur.storage.stored import Stored

__all__ = ["Slots", "slots_of"]

_NAMED = 8


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Where the state of a model lies.

    Args:
        model: what is filled.
        direct: parameters and buffers, to be written in place.
        handed: state that the model makes on request (by a hook), given back to it with ``load_state_dict`` afterwards.
    """

    model: nn.Module
    direct: Mapping[str, Tensor]
    handed: Mapping[str, Tensor]

    def pairs(self, stored: Mapping[str, Stored], path: str) -> list[tuple[Stored, Tensor]]:
        """Every slot with the stored tensor that fills it; a tied slot once.

        Raises:
            WrongModel: names are missing or too many, or shapes or types differ; they are named.
        """
        slots = {**self.direct, **self.handed}
        filled = {id(slots[name]) for name in stored if name in slots}
        missing = [name for name in slots if name not in stored and id(slots[name]) not in filled]
        unexpected = [name for name in stored if name not in slots]
        shapes = [_misfit(name, stored[name], slot) for name, slot in slots.items() if name in stored]
        lines = [
            f"it lacks {_some(missing)}" if missing else "",
            f"it also holds {_some(unexpected)}" if unexpected else "",
            *[line for line in shapes if line][:_NAMED],
        ]
        if any(lines):
            kind = type(self.model).__name__
            raise WrongModel(f"{path!r} does not fit {kind}: {'; '.join(line for line in lines if line)}")
        return list({id(slots[name]): (stored[name], slots[name]) for name in stored}.values())

    def hand_over(self) -> None:
        """Give back what is not written in place."""
        if self.handed:
            self.model.load_state_dict(dict(self.handed), strict=False)


def slots_of(model: nn.Module) -> Slots:
    """The state of ``model``, named as ``state_dict`` names it.

    Raises:
        WrongModel: it keeps state that is no tensor, or has no memory yet.
    """
    state = model.state_dict(keep_vars=True)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    shared: dict[int, Tensor] = {}
    direct, handed = {}, {}
    for name, slot in state.items():
        if not isinstance(slot, Tensor) or slot.is_meta or nn.parameter.is_lazy(slot):
            raise WrongModel(
                f"{name!r} of {type(model).__name__} cannot be filled ({type(slot).__name__}"
                f"{' on the meta device' if isinstance(slot, Tensor) and slot.is_meta else ''}); "
                "load needs a model whose tensors have memory, e.g. after model.to_empty(device='cpu')"
            )
        if own.get(name) is slot:
            direct[name] = shared.setdefault(id(slot), slot.detach())
        else:
            handed[name] = torch.empty_like(slot, requires_grad=False)
    return Slots(model=model, direct=direct, handed=handed)


def _misfit(name: str, stored: Stored, slot: Tensor) -> str:
    if tuple(slot.shape) != stored.entry.shape:
        return f"{name!r} has shape {list(stored.entry.shape)} in the file and {list(slot.shape)} in the model"
    held = DTYPES[stored.entry.dtype]
    widens = held.is_floating_point and slot.is_floating_point() and torch.promote_types(held, slot.dtype) == slot.dtype
    if held != slot.dtype and not widens:
        return (
            f"{name!r} is {held} in the file and {slot.dtype} in the model, which cannot hold it; use model.to({held})"
        )
    return ""


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMED]))
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
