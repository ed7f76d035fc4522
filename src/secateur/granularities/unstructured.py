"""Every weight on its own. Scores are read straight from the parameters, piece by piece."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from secateur.masks import Masks
from secateur.scores import Scores
from secateur.units import Table, Units

__all__ = ["Unstructured"]


@final
@dataclass(frozen=True, kw_only=True)
class Unstructured:
    """Any single weight may leave.

    Args:
        per_row: give every output row its own group, so that rows keep equally many (the comparison group of Wanda).
    """

    per_row: bool = False
    quota: None = None

    def pool(self, scores: Scores) -> Units:
        """Finish each weight's evidence as it is read; nothing is copied."""
        return Units({name: self._table(name, scores) for name in scores.per_weight("unstructured")})

    def spread(self, keep: Mapping[str, Tensor], scores: Scores) -> Masks:
        """Give every decision its weight's place."""
        return Masks({name: self._lay_out(rows, name, scores) for name, rows in keep.items()})

    def _table(self, name: str, scores: Scores) -> Table:
        value, layout = scores.values[name].detach(), scores.layout(name)
        shape = (1, value.numel())
        if self.per_row:
            value = layout.canonical(value).flatten(1)
            shape = (value.shape[0], value.shape[1])
        return Table(
            shape=shape,
            read=_finished(value.reshape(-1), scores),
            layout=layout,
            tensor_shape=tuple(scores.values[name].shape),
        )

    def _lay_out(self, rows: Tensor, name: str, scores: Scores) -> Tensor:
        like = scores.values[name]
        if not self.per_row:
            return rows.reshape(like.shape)
        layout = scores.layout(name)
        return layout.original(rows.reshape(layout.canonical(like).shape), like)


def _finished(flat: Tensor, scores: Scores) -> Callable[[int, int], Tensor]:
    return lambda start, stop: scores.finish(scores.each(flat[start:stop]))


def parse(text: str) -> Unstructured | None:
    """Read ``"unstructured"`` or ``"row"``."""
    return {"unstructured": Unstructured(), "row": Unstructured(per_row=True)}.get(text)
