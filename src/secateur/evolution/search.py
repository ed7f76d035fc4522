"""The search: populations that evolve in turns, each against the best of the other (Shu et al. 2019, algorithm 1).

    for every generation, for every side:
        elites stay; the rest are children by roulette: copied, crossed or mutated, and fitted to the budget
        each is scored against the best of the other side;    objective = N(G)/N(dense) + gamma (L_Dis + lambda L_cyc), or without N

Choices depend on the seed, the generation and the side only, and everything else is in the checkpoint, so that a search that was
killed ends like one that was not.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateur.checkpoints import read_checkpoint, write_checkpoint
from secateur.errors import BadFile, SearchFailed
from secateur.evolution.executors import Crew
from secateur.evolution.genomes import Bits, hexed, unhexed
from secateur.evolution.operators import crossed, mutated, roulette
from secateur.evolution.scoring import Job, Terms
from secateur.evolution.spaces import Space

__all__ = ["Search", "Settings"]

_WORST = Terms(float("inf"), float("inf"))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the search needs to know; `secateur.methods.CoEvolution` says what each means."""

    population: int
    generations: int
    gamma: float
    lambda_cycle: float
    elite: int
    chances: tuple[float, float, float]
    mutation: str
    extent: float
    pressure: float
    weigh_cost: bool
    retries: int
    seed: int


@dataclass(eq=False)
class Search:
    """A search on its way.

    Args:
        settings: how.
        spaces: one or two.
        starts: individuals to begin with, for each side; the rest are random.
        name: of everything that the scores depend on; a checkpoint of another name is refused.
    """

    settings: Settings
    spaces: list[Space]
    starts: list[list[Bits]]
    name: str = ""
    generation: int = 0
    populations: list[list[Bits]] = field(default_factory=list)
    objectives: list[list[float]] = field(default_factory=list)
    best: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    known: dict[str, Terms] = field(default_factory=dict)
    crew: Crew | None = None

    def run(self, crew: Crew, file: Path | None, on_generation: Callable[[Mapping[str, Any]], object] | None) -> None:
        """Go on to the last generation; ``crew`` evaluates."""
        self.crew = crew
        if file is not None and file.exists():
            self.load_state_dict(read_checkpoint(file))
        while self.generation < self.settings.generations:
            done = self.step()
            if file is not None:
                write_checkpoint(file, self.state_dict())
            if on_generation:
                on_generation(done)

    def winners(self) -> list[Bits]:
        """The best genome of every side."""
        return [unhexed(word, space.genomes.size) for word, space in zip(self.best, self.spaces, strict=True)]

    def step(self) -> dict[str, Any]:
        """One generation of every side."""
        start, sides = time.perf_counter(), []
        if not self.populations:
            self.populations = [self._first(side) for side in range(len(self.spaces))]
            self.objectives = [[] for _ in self.spaces]
            self.best = ["" for _ in self.spaces]
        self.generation += 1
        for side in range(len(self.spaces)):
            if self.generation > 1:
                self.populations[side] = self._bred(side)
            sides.append(self._score(side))
        done = {"generation": self.generation, "seconds": time.perf_counter() - start, "sides": sides}
        self.history.append(done)
        return done

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the search depends on."""
        return {
            "settings": repr(replace(self.settings, generations=0)),
            "name": self.name,
            "generation": self.generation,
            "populations": [[hexed(bits) for bits in population] for population in self.populations],
            "objectives": self.objectives,
            "best": self.best,
            "history": self.history,
            "known": {key: list(terms) for key, terms in self.known.items()},
            "prices": [space.amounts() for space in self.spaces],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken.

        Raises:
            BadFile: it is of another search.
        """
        for what, own in (("settings", repr(replace(self.settings, generations=0))), ("name", self.name)):
            if state[what] != own:
                raise BadFile(
                    f"the checkpoint is of another search ({what}: {state[what]}, here {own}); use another folder"
                )
        self.spaces = [space.priced(rows) for space, rows in zip(self.spaces, state["prices"], strict=True)]
        self.generation, self.best, self.history = state["generation"], state["best"], state["history"]
        sizes = [space.genomes.size for space in self.spaces]
        self.populations = [
            [unhexed(w, n) for w in words] for words, n in zip(state["populations"], sizes, strict=True)
        ]
        self.objectives = state["objectives"]
        self.known = {key: Terms(*terms) for key, terms in state["known"].items()}

    def _chance(self, side: int) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, self.generation, side])

    def _first(self, side: int) -> list[Bits]:
        chance, space = self._chance(side), self.spaces[side]
        given = [space.genomes.fitted(bits, chance) for bits in self.starts[side][: self.settings.population]]
        return given + [space.genomes.random(chance) for _ in range(self.settings.population - len(given))]

    def _bred(self, side: int) -> list[Bits]:
        settings, chance = self.settings, self._chance(side)
        fit, parents, objectives = self.spaces[side].genomes.fitted, self.populations[side], self.objectives[side]

        def parent() -> Bits:
            return parents[roulette(objectives, chance, pressure=settings.pressure)]

        order = sorted(range(len(parents)), key=lambda k: objectives[k])
        children = [parents[k] for k in order[: settings.elite]]
        while len(children) < settings.population:
            way = int(chance.choice(3, p=settings.chances))
            if way == 0:
                children.append(parent())
            elif way == 1:
                children += [fit(child, chance) for child in crossed(parent(), parent(), chance)]
            else:
                children.append(fit(mutated(parent(), chance, form=settings.mutation, extent=settings.extent), chance))
        return children[: settings.population]

    def _score(self, side: int) -> dict[str, Any]:
        """Evaluate what is not known yet, find the best, and say what was found."""
        words = [hexed(bits) for bits in self.populations[side]]
        other = self.best[1 - side] if len(self.spaces) > 1 else ""
        keys = [f"{side}:{word}:{other}" for word in words]
        asked, lost = self._evaluate(
            side, {k: w for k, w in zip(keys, words, strict=True) if k not in self.known}, other
        )
        found = [self.known.get(key, _WORST) for key in keys]
        shares = [self.spaces[side].share(bits) for bits in self.populations[side]]
        objectives = [self._objective(terms, share) for terms, share in zip(found, shares, strict=True)]
        first = min(range(len(words)), key=lambda k: objectives[k])
        if not np.isfinite(objectives[first]):
            raise SearchFailed(
                f"no candidate of generation {self.generation} could be scored ({lost} evaluations were lost with their workers); "
                "look at the workers' memory, or use InProcess() to see the error"
            )
        self.objectives[side], self.best[side] = objectives, words[first]
        return {
            "best": objectives[first],
            "mean": float(np.mean([value for value in objectives if np.isfinite(value)])),
            "aware": found[first].aware,
            "cycle": found[first].cycle,
            "share": shares[first],
            "evaluations": asked,
            "remembered": len(words) - asked,
            "lost": lost,
        }

    def _evaluate(self, side: int, wanted: dict[str, str], other: str) -> tuple[int, int]:
        """Have the crew evaluate, and again where a worker was lost; how many, and how many were lost on the way."""
        assert self.crew is not None
        lost, left = 0, dict(wanted)
        partner = self._structure(1 - side, other) if other else None
        for _ in range(1 + self.settings.retries):
            jobs = [Job(side, word, self._structure(side, word), other, partner) for word in left.values()]
            for key, terms in zip(list(left), self.crew(jobs) if jobs else (), strict=True):
                if terms is None:
                    lost += 1
                else:
                    self.known[key] = terms if np.isfinite(sum(terms)) else _WORST
                    del left[key]
        return len(wanted), lost

    def _structure(self, side: int, word: str) -> Any:
        space = self.spaces[side]
        return space.structure(unhexed(word, space.genomes.size))

    def _objective(self, terms: Terms, share: float) -> float:
        settings = self.settings
        loss = terms.aware + settings.lambda_cycle * terms.cycle
        return share + settings.gamma * loss if settings.weigh_cost else loss
