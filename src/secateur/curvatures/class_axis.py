"""Which axis of an output holds the classes, for curvatures that take a softmax over it.

    [N, C]                    axis 1
    [N, C, d1, d2, ...]       axis 1, as in `torch.nn.functional.cross_entropy`
    [N, T, C] or [N, C, T]    the one in sequence models, the other in torch: it has to be said, with ``classes=``

Every place of an example (token, pixel) has a softmax of its own, and the example's loss is the sum over its places.
"""

from numbers import Integral

from torch import Tensor

from secateur.errors import BadSparsity, NeedsTask, WrongModel

__all__ = ["by_class", "check_classes", "tensor_of"]


def check_classes(value: object) -> None:
    """Refuse a setting ``classes=`` that is no axis.

    Raises:
        BadSparsity: it is no whole number, or 0, which is the axis of the examples.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if value is not None and not (whole and value != 0):
        raise BadSparsity(
            f"classes={value!r} makes no sense: it is the axis of the output that holds the classes, a whole number other than 0 (axis 0 "
            "counts the examples), e.g. 1 or -1"
        )


def tensor_of(out: object, kind: str) -> Tensor:
    """A model's output.

    Raises:
        NeedsTask: it is something else.
    """
    if not isinstance(out, Tensor):
        raise NeedsTask(
            f"the model gives {type(out).__name__}, and {kind!r} curvature is that of one tensor of outputs; wrap the model so that it gives "
            "its logits alone, or use 'empirical', which goes through Task.loss"
        )
    return out


def by_class(out: Tensor, examples: int, axis: int | None, kind: str) -> Tensor:
    """Arrange an output as ``[examples, places, classes]``.

    Args:
        out: ``[examples, ...]``.
        examples: how many there are.
        axis: of the classes; None: by the rule above.
        kind: of the curvature, for messages.

    Raises:
        WrongModel: the axis is not there or not clear, or holds one class.

    >>> import torch
    >>> by_class(torch.zeros(8, 5, 4, 4), 8, None, "cross_entropy").shape, by_class(torch.zeros(8, 6, 5), 8, -1, "sampled").shape
    (torch.Size([8, 16, 5]), torch.Size([8, 6, 5]))
    """
    if out.dim() < 2:
        out = out.reshape(examples, -1)
    where = _axis(out, axis, kind)
    found = out.movedim(where, -1).reshape(len(out), -1, out.shape[where])
    if found.shape[-1] == 1:
        raise WrongModel(
            f"{kind!r} curvature takes a softmax over the classes, and axis {where} of the output {_shape(out)} holds one: its softmax is always "
            "1, so that all curvature would be zero; for a single logit use 'empirical', with its loss, or 'squared'"
        )
    return found


def _axis(out: Tensor, axis: int | None, kind: str) -> int:
    dims = out.dim()
    if axis is not None:
        if not axis % dims > 0 or not -dims < axis < dims:
            raise WrongModel(
                f"classes={axis} is no axis of the output {_shape(out)} that could hold its classes: use 1 to {dims - 1}, or -1"
            )
        return axis % dims
    if dims == 3 and 1 in out.shape[1:]:
        return 1 if out.shape[2] == 1 else 2  # the other one is one place
    if dims == 3:
        raise WrongModel(
            f"{kind!r} curvature takes a softmax over the classes, and the output {_shape(out)} does not say where they are: for "
            f"[N, T, C] of sequence models pass classes=-1 ({out.shape[2]} classes), for [N, C, T] as in torch.nn.functional.cross_entropy "
            f"pass classes=1 ({out.shape[1]} classes)"
        )
    return 1


def _shape(out: Tensor) -> str:
    return f"[{', '.join(['N', *map(str, out.shape[1:])])}]"
