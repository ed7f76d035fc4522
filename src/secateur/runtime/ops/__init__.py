"""How each operation becomes steps of the engine: one function for each name, in the file of its kind."""

from collections.abc import Callable

from secateur.runtime.emitting import Emitter
from secateur.runtime.graph import Node
from secateur.runtime.ops import elementwise, moves, norms, places, reductions, sequences, spatial
from secateur.runtime.ops.arguments import Unfit

__all__ = ["EMIT", "Unfit"]

EMIT: dict[str, Callable[[Emitter, Node], None]] = {
    **elementwise.EMIT,
    **moves.EMIT,
    **norms.EMIT,
    **places.EMIT,
    **reductions.EMIT,
    **sequences.EMIT,
    **spatial.EMIT,
}
