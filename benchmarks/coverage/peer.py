"""The same architectures through other libraries, asked for less: forward works, outputs keep their shapes, parameters fall.

Nothing but the example is passed on, as here: no list of layers to leave alone, no number of heads. What a library leaves wrong is
written down as it is: outputs of another shape, a model that no longer runs, nothing removed, an error, or no end.
"""

import time
from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.coverage.cases import Case, Entry
from benchmarks.coverage.check import Keep, Wrong, count, outputs, peak

__all__ = ["PEERS", "check"]


def torch_pruning(case: Case) -> nn.Module:
    """Half of every group by magnitude; its own outputs are told to it, or it would prune the classes away."""
    import torch_pruning as tp

    last = makes_output(case)
    pruner = tp.pruner.BasePruner(
        case.model,
        case.example,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=last,
        root_module_types=[nn.modules.conv._ConvNd, nn.Linear, nn.LSTM],
    )
    pruner.step()
    return case.model


def kirigami(case: Case) -> nn.Module:
    """At most 75 % of the parameters, by magnitude."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Greedy, GroupMagnitude, ParameterBudget, Pruner

    args, kwargs = ((), case.example) if isinstance(case.example, dict) else (case.example, {})
    graph = DependencyGraph.build(case.model, args=args if isinstance(args, tuple) else (args,), kwargs=kwargs)
    pruner = Pruner(case.model, graph=graph)
    budget = ParameterBudget(max_params=int(0.75 * count(case.model)))
    thin, _ = pruner.prune(pruner.discover_candidates(), budget=budget, strategy=Greedy(GroupMagnitude(p=2)))
    return thin  # type: ignore[no-any-return]


PEERS: dict[str, Callable[[Case], nn.Module]] = {"torch_pruning": torch_pruning, "kirigami": kirigami}


def makes_output(case: Case) -> list[nn.Module]:
    """The layers whose result is one of the model's outputs."""
    made: dict[int, nn.Module] = {}

    def note(module: nn.Module, _: Any, out: Any) -> None:
        if not list(module.children()) and hasattr(out, "data_ptr"):
            made[out.data_ptr()] = module

    handles = [module.register_forward_hook(note) for module in case.model.modules()]
    from benchmarks.coverage.check import call
    from secateur.coupling.running import tensors_of

    found = tensors_of(call(case.model, case.example))
    for handle in handles:
        handle.remove()
    return [made[t.data_ptr()] for t in found if t.data_ptr() in made]


def check(entry: Entry, keep: Keep, peer: str) -> None:
    """Prune with a peer; what passes has fewer parameters, runs, and gives outputs of the same shapes."""
    case = entry.build(seed=0)
    before, params = outputs(case.model, case.fresh), count(case.model)
    keep({"stage": "prune", "params": params, "base_mb": peak()})
    start = time.process_time()
    thin = PEERS[peer](case)
    keep({"prune_s": round(time.process_time() - start, 2), "peak_mb": peak(), "ratio": round(count(thin) / params, 4)})
    keep({"stage": "compare"})
    after = outputs(thin, case.fresh)
    keep({"forward": True, "same_shapes": [t.shape for t in before] == [t.shape for t in after]})
    if count(thin) >= params:
        raise Wrong("no parameter left")
    if [t.shape for t in before] != [t.shape for t in after]:
        raise Wrong("outputs changed their shapes")
