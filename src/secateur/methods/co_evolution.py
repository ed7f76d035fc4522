"""Co-evolutionary compression of generators: which channels live is searched, for a pair together (Shu et al., ICCV 2019, eq. 7 to 9).

    min  N(G1) + N(G2) + gamma ( L_Dis(G1, D1) + lambda L_cyc(G1, G2, X)  +  L_Dis(G2, D2) + lambda L_cyc(G2, G1, Y) )

Two populations of genomes evolve in turns, each scored against the best of the other. For one generator:  min N(G) + gamma L_Dis(G, D).
Genomes run over coupled groups, so there is no layout of masks to write for a network. N counts as a part of the dense generator, so
gamma does not depend on its size (the paper counts parameters). With a budget, N leaves the objective and every genome is kept within.

The authors' code adds up the inverse loss and the number of dead channels, and flips a third of a genome on average; see the page.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import nn

from secateur.errors import BadSparsity, WrongModel
from secateur.evolution.executors import Executor, InProcess
from secateur.evolution.scoring import Arena, Tuning
from secateur.evolution.search import Search, Settings
from secateur.evolution.spaces import Space, space_of
from secateur.evolution.starting import digest, inputs_of, split, started
from secateur.examples import device_of
from secateur.graphs import copied
from secateur.names import find
from secateur.narrowing.narrow import narrow
from secateur.narrowing.recoupling import Narrowed
from secateur.narrowing.thinning import coupled, receipt
from secateur.notes import describe
from secateur.protocols import Cost, Criterion
from secateur.targets import Ignore

__all__ = ["CoEvolution"]

Train = Callable[[tuple[nn.Module, ...]], Any]


@final
@dataclass(frozen=True, kw_only=True)
class CoEvolution:
    """Evolve which channels of one generator, or of a pair, live; narrow the best.

    Args:
        population: individuals of each side.
        generations: how often both sides evolve; the first scores the individuals that the search starts from.
        budget: what each result may cost, such as ``"macs:25%"``, or several that hold at once; None: the cost is weighed.
        gamma: how much the losses count against the cost, where it is weighed.
        lambda_cycle: how much the cycle counts against the discriminator's view.
        cost: what is weighed: "params", "macs", "latency", ...
        elite: the best, which stay.
        chances: of copying, crossing and mutating.
        mutation: "segment" or "bit".
        extent: the longest segment as a part of the genome, or the chance of each bit to flip.
        pressure: power of the fitness in the roulette; 1 is the paper's, more prefers the best more.
        starts: criteria whose choices are among the first individuals; the paper's are all random.
        images: how many inputs of each domain candidates are scored on, the first ones.
        tuning: how candidates are tuned before they are scored; not by default.
        cycle_power: 2 is the paper's squared difference, 1 the code's absolute one.
        min_kept: units that live in every group at least.
        round_to: widths are multiples of this.
        ignore: layers whose channels stay.
        retries: how often an evaluation is asked for again when its worker was lost.
        seed: of everything that is random.
    """

    population: int = 32
    generations: int = 50
    budget: str | tuple[str, ...] | None = None
    gamma: float = 10.0
    lambda_cycle: float = 10.0
    cost: str | Cost = "params"
    elite: int = 1
    chances: tuple[float, float, float] = (0.2, 0.7, 0.1)
    mutation: str = "segment"
    extent: float = 0.1
    pressure: float = 1.0
    starts: tuple[str | Criterion, ...] = ()
    images: int = 32
    tuning: Tuning = field(default_factory=Tuning)
    cycle_power: int = 2
    min_kept: int = 1
    round_to: int = 1
    ignore: Ignore | Iterable[Ignore] = field(default=(), hash=False)
    retries: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.population < 2 or self.generations < 1 or not 0 <= self.elite < self.population:
            raise BadSparsity(
                f"CoEvolution(population={self.population}, generations={self.generations}, elite={self.elite}) needs two individuals, "
                "a generation, and an elite smaller than the population"
            )
        if min(self.chances) < 0 or abs(sum(self.chances) - 1) > 1e-9 or self.cycle_power not in (1, 2):
            raise BadSparsity(f"chances={self.chances} must add up to 1, and cycle_power={self.cycle_power} be 1 or 2")

    def __call__(
        self,
        generators: Any,
        discriminators: Any,
        images: Any,
        *,
        executor: Executor | None = None,
        folder: str | Path | None = None,
        on_generation: Callable[[Mapping[str, Any]], object] | None = None,
        train: Train | None = None,
        tasks: Any = None,
    ) -> Any:
        """Search, narrow, and measure; the generators are not touched.

        Args:
            generators: ``(g_ab, g_ba)``, or one generator.
            discriminators: ``(d_a, d_b)``, or one; any module that sees what a generator makes, or None: outputs are compared.
            images: ``(images_a, images_b)``, or inputs of the one: a tensor ``[n, ...]``, `secateur.cyclegan.Images`, a folder.
            executor: where candidates are evaluated; here, if None. See `secateur.evolution`.
            folder: for the checkpoint of every generation, from which the search goes on when it is called again.
            on_generation: called after each with what the receipt's ``settings["history"]`` holds about it.
            train: ``train((g_ab, g_ba))`` fine-tunes the narrowed generators, in place or by returning others of the same shapes.
            tasks: for each generator a `Task` whose ``evaluate`` is the receipt's score.

        Returns:
            For each generator a `Pruned`; one, if one generator was given.

        Raises:
            NothingToPrune, OverBudget, UnknownName, NarrowingFailed: see the parts.
            SearchFailed: no candidate could be scored.
            BadFile: the folder holds another search.
        """
        single = isinstance(generators, nn.Module)
        models, judges = _sides(generators, 1 if single else 2), _sides(discriminators, 1 if single else 2)
        device = device_of(models[0])
        inputs = [inputs_of(source, device) for source in _sides(images, len(models))]
        given = _sides(tasks, len(models)) if tasks is not None else (None,) * len(models)
        spaces = [self._space(model, x[:1]) for model, x in zip(models, inputs, strict=True)]
        arena = self._arena(models, judges[::-1], [split(x, self.images) for x in inputs])
        words = digest(
            (*models, *judges), (*arena.inputs, *arena.practice), repr((self.budget, self.tuning, self.ignore))
        )
        search = self._search(spaces, arena, words, given)
        crew = (executor or InProcess())(arena)
        try:
            search.run(crew, None if folder is None else Path(folder) / "search.safetensors", on_generation)
        finally:
            crew.close()
        return self._results(search, inputs, given, train, single=single)

    @property
    def _budgets(self) -> tuple[str, ...]:
        return (self.budget,) if isinstance(self.budget, str) else tuple(self.budget or ())

    def _space(self, model: nn.Module, example_inputs: Any) -> Space:
        cost = find("costs", self.cost)() if isinstance(self.cost, str) else self.cost
        return space_of(
            model,
            coupled(model, example_inputs, ignore=self.ignore),
            cost=cost,
            budgets=self._budgets,
            example_inputs=example_inputs,
            min_kept=self.min_kept,
            round_to=self.round_to,
        )

    def _arena(self, models: Any, judges: Any, inputs: Any) -> Arena:
        def still(model: nn.Module | None) -> Any:
            return None if model is None else copied(model).requires_grad_(False).eval()

        return Arena(
            generators=tuple(still(model) for model in models),
            judges=tuple(still(judge) for judge in judges),
            inputs=tuple(score for score, _ in inputs),
            practice=tuple(practice for _, practice in inputs),
            tuning=self.tuning,
            power=self.cycle_power,
        )

    def _search(self, spaces: list[Space], arena: Arena, words: str, tasks: Any) -> Search:
        starts = [
            started(space, self.starts, self._budgets, x[:1], task)
            for space, x, task in zip(spaces, arena.inputs, tasks, strict=True)
        ]
        own = {key: value for key, value in vars(self).items() if key in Settings.__dataclass_fields__}
        return Search(Settings(**own, weigh_cost=not self._budgets), spaces, starts, words)

    def _results(self, search: Search, inputs: Any, tasks: Any, train: Any, *, single: bool) -> Any:
        spaces, best = search.spaces, search.winners()
        masks = [space.masks(bits) for space, bits in zip(spaces, best, strict=True)]
        thin = [
            narrow(space.model, mask, x[:1], coupling=space.coupling) if mask.kept < mask.total else copied(space.model)
            for space, mask, x in zip(spaces, masks, inputs, strict=True)
        ]
        trained = (train(tuple(thin)) or thin) if train else thin
        results = tuple(
            receipt(
                Narrowed(model, space.model, mask, space.coupling),
                example_inputs=x[:1],
                before=space.model,
                task=task,
                method=self._said(single=single, trained=bool(train)),
                settings={"history": search.history, "side": side, "genome": search.best[side], **_plain(self)},
            )
            for side, (model, space, mask, x, task) in enumerate(
                zip(trained, spaces, masks, inputs, tasks, strict=True)
            )
        )
        return results[0] if single else results

    def _said(self, *, single: bool, trained: bool) -> str:
        share = (
            "budget " + ", ".join(self._budgets)
            if self._budgets
            else f"{describe(self.cost) if not isinstance(self.cost, str) else self.cost} + {self.gamma:g} x losses"
        )
        what = "channels of one generator evolved" if single else "channels of a pair of generators co-evolved"
        return f"{what}: population {self.population}, {self.generations} generations, {share}{', then trained' if trained else ''}"


def _sides(given: Any, count: int) -> tuple[Any, ...]:
    """One, or a pair, as a tuple."""
    found = tuple(given) if count == 2 and isinstance(given, tuple | list) else (given,)
    if len(found) != count:
        raise WrongModel(
            f"{count} generator(s) were given, so discriminators and images must be {count} too, in the order of the domains; "
            f"found {type(given).__name__}"
        )
    return found


def _plain(method: CoEvolution) -> dict[str, Any]:
    return {k: v if isinstance(v, int | float | str) or v is None else str(v) for k, v in vars(method).items()}
