"""Recurrent layers step by step: what their weights are multiplied with at every time, in every layer and direction.

    weight_ih   the inputs, or the states of the layer below
    weight_hh   the state one step before; at the first step the one that the call is given, or zeros

A decoder that calls its layer for every token hands the state over from call to call: without it weight_hh would seem to read nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nf
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from secateur.errors import UnknownLayer

__all__ = ["unrolled"]


def unrolled(module: nn.RNNBase, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What each weight is multiplied with in a call, by attribute: ``[1, features, samples]``.

    Args:
        module: the layer; not run, its parts are, with the same weights.
        args: of the call: a sequence (batched or not, padded or packed), and the state that it starts with, where one is given.
        kwargs: likewise.

    Raises:
        UnknownLayer: its states are projected.

    >>> gru, x = nn.GRU(3, 2, batch_first=True), torch.randn(1, 1, 3)
    >>> state = torch.ones(1, 1, 2)
    >>> unrolled(gru, (x, state), {})["weight_hh_l0"]
    tensor([[[1.],
             [1.]]])
    """
    call = dict(zip(("input", "hx"), args, strict=False)) | dict(kwargs)
    x, given = call.get("input", next(iter(call.values()))), call.get("hx")
    if getattr(module, "proj_size", 0):
        raise UnknownLayer("recurrent layers with proj_size= have no rule; leave them out with ignore=")
    found: dict[str, Tensor] = {}
    for layer in range(module.num_layers):
        outputs = []
        for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
            start = _start(module, given, len(found) // 2)
            inputs, states, outs = _one_layer(module, layer, suffix, x, start)
            found[f"weight_ih_l{layer}{suffix}"] = inputs.t().unsqueeze(0)
            found[f"weight_hh_l{layer}{suffix}"] = states.t().unsqueeze(0)
            outputs.append(outs)
        x = outputs[0] if len(outputs) == 1 else _joined(outputs)
    return found


def _start(module: nn.RNNBase, given: Any, which: int) -> tuple[Tensor, ...]:
    """The states ``[1, batch, width]`` that layer and direction ``which`` starts with: of an LSTM the output and the cell; empty: zeros."""
    if given is None:
        return ()
    states = given if isinstance(module, nn.LSTM) else (given,)
    return tuple((s.unsqueeze(1) if s.dim() == 2 else s)[which : which + 1].detach() for s in states)


def _one_layer(
    module: nn.RNNBase, layer: int, suffix: str, x: Any, start: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Any]:
    """Inputs ``[samples, features]``, the states one step before ``[samples, features]``, and what comes out (as ``x`` is)."""
    width = module.hidden_size
    wide = x.data.shape[-1]
    kind: Any = next(
        known for known in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, known)
    )  # not a subclass of them
    options = {"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}
    small = kind(wide, width, bias=module.bias, batch_first=True, **options).to(x.data.device, x.data.dtype)
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if module.bias else ())):
            getattr(small, f"{name}_l0").copy_(getattr(module, f"{name}_l{layer}{suffix}"))
    padded, lengths = _padded(module, x)
    real = torch.arange(padded.shape[1], device=padded.device) < lengths.to(padded.device).unsqueeze(1)  # [batch, time]
    turned = _flipped(padded, lengths) if suffix else padded
    with torch.no_grad():
        outs = small(turned, *((start if isinstance(module, nn.LSTM) else start[0],) if start else ()))[0]
    before = nf.pad(outs[:, :-1], (0, 0, 1, 0))
    if start:
        before[:, 0] = start[0][0]
    outs = _flipped(outs, lengths) if suffix else outs
    inputs = turned[real]
    return inputs, before[real], _Padded(outs, lengths)


class _Padded:
    """A batch of sequences with the batch first, and their lengths."""

    def __init__(self, values: Tensor, lengths: Tensor) -> None:
        self.data, self.lengths = values, lengths


def _padded(module: nn.RNNBase, x: Any) -> tuple[Tensor, Tensor]:
    if isinstance(x, _Padded):
        return x.data, x.lengths
    if isinstance(x, PackedSequence):
        return pad_packed_sequence(x, batch_first=True)
    batched = x.unsqueeze(0) if x.dim() == 2 else x if module.batch_first else x.transpose(0, 1)
    return batched, torch.full((len(batched),), batched.shape[1])


def _joined(outputs: list[Any]) -> _Padded:
    return _Padded(torch.cat([out.data for out in outputs], 2), outputs[0].lengths)


def _flipped(x: Tensor, lengths: Tensor) -> Tensor:
    """Every sequence from its end to its start; what is padding stays behind."""
    time = torch.arange(x.shape[1], device=x.device)
    place = lengths.to(x.device).unsqueeze(1) - 1 - time
    place = torch.where(place >= 0, place, time)
    return x.gather(1, place.unsqueeze(2).expand_as(x))
