"""The stages of a network under layer-wise surgery, and the layers in each that are pruned, in the order in which they run.

    head    what runs before the chain        the network, stopped at the first block
    blocks  one stage each                    the block alone, on what the one before gave
    tail    what runs after the chain         the network whole

A network without a chain is one stage. A weight that layers of several blocks use is seen whole in none of them: its turn comes in the tail.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from torch import nn

from secateur.activations import run_hooked
from secateur.layerwise.chains import version_of
from secateur.task import Task

__all__ = ["Stage", "stages_of"]

Source = tuple[int, int]  # which tensor, and how often it was changed in place


@final
@dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of the network and the layers in it that are pruned, in the order in which they run.

    Args:
        block: its path, "" for the whole network.
        groups: paths of layers; those that take in the same tensor stand together.
        last: whether the network runs to its end for it.
    """

    block: str
    groups: tuple[tuple[str, ...], ...]
    last: bool = False


class _Call(NamedTuple):
    path: str
    source: Source
    inside: str  # the block that ran then


def stages_of(
    model: nn.Module,
    paths: Sequence[str],
    chain: Sequence[str],
    batches: Sequence[Any],
    task: Task | None,
    *,
    families: Mapping[str, Collection[str]] | None = None,
) -> tuple[list[Stage], set[str]]:
    """The stages of ``model`` and the layers that run: it is run whole on the first batch, and on others for layers that it missed.

    Args:
        model: the network.
        paths: of the layers that are pruned.
        chain: of its blocks.
        batches: what it is run on.
        task: says how.
        families: for each of ``paths`` all layers that use its weights, itself among them; None: what other blocks call is not asked.
    """
    families = families or {}
    head_of = {path: head for head, family in reversed([*families.items()]) for path in family}
    head_of |= {path: path for path in paths}
    heard: set[str] = set()
    seen: list[_Call] = []
    for batch in batches:
        missed = [path for path in head_of if path not in heard]
        if missed:
            seen += _heard(model, missed, chain, batch, task)
            heard = {call.path for call in seen}
    across = {
        head
        for head, family in families.items()
        if {call.inside for call in seen if call.path in family} - {_link_of(head, chain)}
    }
    return _arranged([call._replace(path=head_of[call.path]) for call in seen], chain, across), heard


def _heard(model: nn.Module, paths: Sequence[str], chain: Sequence[str], batch: Any, task: Task | None) -> list[_Call]:
    """Which of the layers run on a batch, in order, on what, and inside of which block."""
    seen: list[_Call] = []
    alive: list[Any] = []
    inside = [""]

    def note(module: nn.Module, args: Any, kwargs: Any, _out: Any) -> None:
        first = args[0] if args else next(iter(kwargs.values()), None)
        inner = getattr(module, "out_proj", None)
        alive.append(first)
        if module in modules:
            seen.append(_Call(modules[module], (id(first), version_of(first)), inside[-1]))
        if isinstance(inner, nn.Module) and inner in modules:  # of attention: not called as a module
            seen.append(_Call(modules[inner], (-len(seen) - 1, 0), inside[-1]))

    modules = {model.get_submodule(path): path for path in paths}
    around = [model.get_submodule(path.rpartition(".")[0]) for path in paths]
    heard = dict.fromkeys([*modules, *(m for m in around if isinstance(m, nn.MultiheadAttention))])
    handles = [module.register_forward_hook(note, with_kwargs=True) for module in heard]
    for path in chain:
        block = model.get_submodule(path)
        handles.append(block.register_forward_pre_hook(lambda _m, _a, path=path: inside.append(path)))
        handles.append(block.register_forward_hook(lambda _m, _a, _out: _left(inside)))
    run_hooked(model, batch, task, handles)
    return seen


def _left(inside: list[str]) -> None:
    inside.pop()


def _link_of(path: str, chain: Sequence[str]) -> str:
    return next((link for link in chain if path == link or path.startswith(f"{link}.")), "")


def _arranged(seen: Sequence[_Call], chain: Sequence[str], across: Collection[str]) -> list[Stage]:
    def link_of(path: str) -> str:
        return "" if path in across else _link_of(path, chain)

    groups: dict[tuple[str, Source], list[str]] = {}
    for path, source, _ in seen:
        if not any(path in group for group in groups.values()):
            groups.setdefault((link_of(path), source), []).append(path)
    order = [call.path for call in seen]
    begins = next((at for at, path in enumerate(order) if link_of(path)), len(order))
    head = [tuple(g) for (link, _), g in groups.items() if not link and order.index(g[0]) < begins]
    tail = [tuple(g) for (link, _), g in groups.items() if not link and order.index(g[0]) >= begins]
    stages = [Stage(block="", groups=tuple(head))] if head else []
    stages += [
        Stage(block=link, groups=tuple(tuple(g) for (own, _), g in groups.items() if own == link)) for link in chain
    ]
    return stages + ([Stage(block="", groups=tuple(tail), last=True)] if tail else [])
