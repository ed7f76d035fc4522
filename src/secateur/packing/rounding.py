"""Values in fewer bits, when that is asked for: fp16, bf16, or int8 with one scale a row.

q = round(w / s),  s = max |w over the row| / 127          w' = q s,  |w - w'| <= s / 2
"""

import torch
from torch import Tensor

from secateur.errors import WrongModel

__all__ = ["KINDS", "restored", "rounded"]

_FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16}
KINDS = (*_FLOATS, "int8")


def rounded(tensor: Tensor, kind: str | None, name: str) -> tuple[Tensor, Tensor | None]:
    """Return the tensor in fewer bits and the scales of its rows, if it has any.

    Integers, and vectors where ``kind`` is "int8", stay as they are: they are few and do damage.

    Raises:
        WrongModel: a value does not fit, or ``kind`` is unknown.
    """
    if kind is not None and kind not in KINDS:
        raise WrongModel(
            f"dtype={kind!r} is no way to store values; there are {', '.join(KINDS)}, or None to keep them exactly"
        )
    if kind is None or not tensor.is_floating_point() or tensor.element_size() < 2:
        return tensor, None
    if kind == "int8":
        return _as_int8(tensor, name) if tensor.dim() > 1 and tensor.numel() else (tensor, None)
    narrow = tensor if tensor.element_size() == 2 else tensor.to(_FLOATS[kind])
    if not torch.equal(torch.isinf(narrow), torch.isinf(tensor)):
        largest = float(tensor[torch.isfinite(tensor)].abs().max())
        raise WrongModel(f"{name!r} holds {largest:g}, which is infinite in {kind}; use dtype='bf16' or None")
    return narrow, None


def restored(values: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Undo `rounded`, as far as that is possible."""
    if scales is None:
        return values.to(dtype)
    return (values.to(torch.float32) * scales.reshape(-1, *[1] * (values.dim() - 1))).to(dtype)


def _as_int8(tensor: Tensor, name: str) -> tuple[Tensor, Tensor]:
    rows = tensor.detach().to(torch.float32)
    largest = rows.flatten(1).abs().amax(1)
    if not torch.isfinite(largest).all():
        raise WrongModel(
            f"{name!r} holds NaN or infinity (or values beyond float32), which int8 cannot; use dtype=None"
        )
    scales = (largest / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.round(rows / scales.reshape(-1, *[1] * (rows.dim() - 1))).clamp_(-127, 127).to(torch.int8), scales
