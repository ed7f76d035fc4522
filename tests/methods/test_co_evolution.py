"""Co-evolution: budgets hold, the best is really narrowed, and neither a killed search nor a lost worker changes the result."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.costs.latency import Latency
from secateur.costs.macs import Macs
from secateur.cyclegan import Networks, PatchDiscriminator, ResNetGenerator, Training, initialise_
from secateur.evolution import Arena, InProcess, Job, Processes, Ray, Tuning
from secateur.evolution.genomes import hexed, unhexed
from secateur.evolution.spaces import space_of
from secateur.graphs import copied
from secateur.names import find
from secateur.narrowing.narrow import structure_of

TINY = {"population": 5, "generations": 3, "images": 3}


def pair():
    g = tuple(initialise_(ResNetGenerator(4, 1), seed=k, std=0.2) for k in (0, 1))
    d = tuple(initialise_(PatchDiscriminator(4, 2), seed=k, std=0.2) for k in (2, 3))
    x = tuple(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in (0, 1))
    return g, d, x


def genomes_of(results):
    return [one.report.settings["genome"] for one in results]


@pytest.fixture(scope="module")
def plain():
    """The search that others are compared with."""
    return sc.methods.CoEvolution(**TINY, seed=3)(*pair())


def test_a_budget_holds_and_masked_equals_narrowed():
    g, d, x = pair()
    method = sc.methods.CoEvolution(
        **TINY, budget=("params:40%", "macs:40%"), starts=("magnitude",), tuning=Tuning(steps=1)
    )
    seen = []
    results = method(g, d, x, on_generation=seen.append)
    assert [done["generation"] for done in seen] == [1, 2, 3]
    for model, one in zip(g, results, strict=True):
        before, after = one.report.before, one.report.after
        assert 0.3 * before.params < after.params <= 0.4 * before.params
        assert after.macs <= 0.4 * before.macs
        masked = one.masks.apply_(copied(model))
        torch.testing.assert_close(one.model(x[0]), masked(x[0]), rtol=1e-5, atol=1e-5)
        assert sum(p.numel() for p in model.parameters()) == before.params  # the generator itself is as it was
    a, b = ([done["sides"][k] for done in seen] for k in (0, 1))
    assert b[0]["share"] == b[1]["share"]  # the second side kept its best
    assert a[1]["share"] == a[2]["share"]  # and so did the first
    assert a[2]["best"] <= a[1]["best"]  # elites stay: against the same other best, nothing gets worse
    assert b[2]["best"] <= b[1]["best"]
    assert min(side["cycle"] for side in (*a, *b)) > 0


def test_the_objective_is_the_formula(plain):
    """The last best of the first side, scored again by hand: N + gamma (L_Dis + lambda L_cyc) against the best of the other side."""
    g, d, x = pair()
    history, last = plain[0].report.settings["history"], {}
    thin = plain[0].model
    space = space_of(
        g[0], sc.couple(g[0], x[0][:1]), cost=find("costs", "params")(), budgets=(), example_inputs=x[0][:1]
    )
    bits = unhexed(plain[0].report.settings["genome"], space.genomes.size)
    with torch.no_grad():
        aware = float((d[1](thin(x[0][:3])) - d[1](g[0](x[0][:3]))).square().mean())
    last = history[-1]["sides"][0]
    assert last["aware"] == pytest.approx(aware, rel=1e-4)
    share = sum(p.numel() for p in thin.parameters()) / sum(p.numel() for p in g[0].parameters())
    assert last["share"] == pytest.approx(share) == pytest.approx(space.share(bits))
    assert last["best"] == pytest.approx(share + 10 * (aware + 10 * last["cycle"]), rel=1e-4)


def test_the_cycle_goes_through_the_other_best():
    g, _, x = pair()
    arena = Arena(generators=(nn.Identity(), g[1]), judges=(None, None), inputs=x, practice=x, power=1)
    with torch.no_grad():
        expected = float((g[1].eval()(x[0]) - x[0]).abs().mean())
    assert arena(Job(0, "", None)) == (0.0, pytest.approx(expected, rel=1e-5))


def test_it_gets_better_than_chance():
    g, d, x = pair()
    found = sc.methods.CoEvolution(
        population=10, generations=15, images=4, budget="params:50%", pressure=4, chances=(0, 0.5, 0.5), seed=1
    )(g[0], d[1], x[0])
    history = [done["sides"][0]["best"] for done in found.report.settings["history"]]
    assert history == sorted(history, reverse=True)
    assert history[-1] < history[0]


def test_the_same_seed_finds_the_same(plain):
    assert genomes_of(sc.methods.CoEvolution(**TINY, seed=3)(*pair())) == genomes_of(plain)
    assert genomes_of(sc.methods.CoEvolution(**TINY, seed=4)(*pair())) != genomes_of(plain)


def test_latency_prices_come_back_from_a_checkpoint(tmp_path, monkeypatch):
    """They are measured, so a resumed search must not measure them again: this clock never says the same twice."""
    paces, macs = itertools.count(1, 0.01), Macs()

    def clock(_self, models, example_inputs):
        pace = next(paces)
        return [pace * found for found in macs.measure(models, example_inputs)]

    monkeypatch.setattr(Latency, "measure", clock)
    monkeypatch.setattr(Latency, "parts", lambda _self, model, example_inputs: macs.parts(model, example_inputs))
    g, d, x = pair()
    method = sc.methods.CoEvolution(**TINY, budget="latency:90%")
    first = method(g[0], d[1], x[0], folder=tmp_path)
    again = method(g[0], d[1], x[0], folder=tmp_path)  # nothing is left to do
    assert first.report.settings["history"][-1]["sides"][0]["share"] < 1
    assert again.report.settings["history"] == first.report.settings["history"]


def test_another_search_in_the_folder_is_refused(tmp_path):
    g, d, x = pair()
    sc.methods.CoEvolution(population=3, generations=1, images=2)(g[0], d[1], x[0], folder=tmp_path)
    for method, inputs in (
        (sc.methods.CoEvolution(population=4, generations=1, images=2), x[0]),
        (sc.methods.CoEvolution(population=3, generations=1, images=2), x[1]),
    ):
        with pytest.raises(sc.errors.BadFile, match="another search"):
            method(g[0], d[1], inputs, folder=tmp_path)


SCRIPT = textwrap.dedent(
    """
    import sys, time
    sys.path.insert(0, {here!r})
    from test_co_evolution import TINY, pair
    import secateur as sc, torch
    torch.set_num_threads(1)
    method = sc.methods.CoEvolution(**TINY, seed=3)
    method(*pair(), folder={folder!r}, on_generation=lambda done: (print(done["generation"], flush=True), time.sleep(30)))
    """
)


def test_killed_and_resumed_it_ends_like_one_that_was_not(tmp_path, plain):
    script = SCRIPT.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(sc.__file__).parents[1])},
    ) as process:
        assert process.stdout.readline().strip() == "1"
        os.kill(process.pid, signal.SIGKILL)
    resumed = sc.methods.CoEvolution(**TINY, seed=3)(*pair(), folder=tmp_path)
    assert genomes_of(resumed) == genomes_of(plain)
    assert [one.masks == other.masks for one, other in zip(resumed, plain, strict=True)] == [True, True]
    last, expected = (r[0].report.settings["history"][-1]["sides"] for r in (resumed, plain))
    assert [side["best"] for side in last] == [side["best"] for side in expected]


class Murderous:
    """Processes, one of which is killed while it works."""

    def __init__(self, crew):
        self.crew, self.struck = crew, False

    def __call__(self, jobs):
        if not self.struck and len(jobs) > 1:
            self.struck = True
            os.kill(self.crew.pids[0], signal.SIGKILL)
            time.sleep(0.2)
        return self.crew(jobs)

    def close(self):
        self.crew.close()


def test_a_lost_worker_loses_one_evaluation(plain):
    found = sc.methods.CoEvolution(**TINY, seed=3)(
        *pair(), executor=lambda arena: Murderous(Processes(workers=2)(arena))
    )
    history = found[0].report.settings["history"]
    assert sum(side["lost"] for done in history for side in done["sides"]) == 1
    assert genomes_of(found) == genomes_of(plain)


def test_errors_of_workers_reach_the_user():
    g, _, x = pair()
    crew = Processes(workers=1)(Arena(generators=(g[0],), judges=(nn.Linear(7, 1),), inputs=x[:1], practice=x[:1]))
    try:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            crew([Job(0, "", None)])
    finally:
        crew.close()


def test_workers_that_always_die_end_the_search():
    g, d, x = pair()

    class Lost:
        def __call__(self, jobs):
            return [None] * len(jobs)

        def close(self):
            pass

    with pytest.raises(sc.errors.SearchFailed, match="no candidate"):
        sc.methods.CoEvolution(population=2, generations=1, retries=1)(g[0], d[1], x[0], executor=lambda arena: Lost())


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_ray_is_asked_for_by_name():
    g, d, x = pair()
    with pytest.raises(sc.errors.NeedsPackage, match="secateur\\[ray\\]"):
        sc.methods.CoEvolution(**TINY)(g[0], d[1], x[0], executor=Ray())


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_ray_with_a_worker_killed(plain):
    found = sc.methods.CoEvolution(**TINY, seed=3)(*pair(), executor=lambda arena: Murderous(Ray(workers=2)(arena)))
    history = found[0].report.settings["history"]
    assert sum(side["lost"] for done in history for side in done["sides"]) == 1
    assert genomes_of(found) == genomes_of(plain)


def test_winners_are_tuned_and_measured():
    g, d, x = pair()

    def train(thin):
        run = Training(steps=2, average=0, pool=0).start(Networks(*thin, *map(copied, d)), *x, teachers=g)
        return run.train().finish()

    found = sc.methods.CoEvolution(**TINY, budget="macs:50%")(g, d, x, train=train)
    assert "then trained" in found[0].report.method
    again = copied(found[0].model)
    assert structure_of(again) is not None  # so that sc.save writes a file of the original class


@pytest.mark.parametrize("judge", [None, nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 4))])
def test_generators_of_noise_and_batch_norm(judge):
    """A DCGAN-like generator from vectors, without a cycle and without a discriminator."""
    torch.manual_seed(0)
    generator = nn.Sequential(
        nn.Linear(8, 64), nn.Unflatten(1, (16, 2, 2)), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 12, 4, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    z = torch.randn(6, 8)
    found = sc.methods.CoEvolution(**TINY, budget="params:50%", tuning=Tuning(steps=1))(generator, judge, z)
    assert found.report.after.params <= found.report.before.params / 2
    assert found.model(z).shape == (6, 3, 8, 8)


def test_two_generators_need_two_of_everything():
    g, d, x = pair()
    with pytest.raises(sc.errors.WrongModel, match="in the order of the domains"):
        sc.methods.CoEvolution(**TINY)(g, d[0], x)
    with pytest.raises(sc.errors.BadSparsity, match="two individuals"):
        sc.methods.CoEvolution(population=1)
    with pytest.raises(sc.errors.NeedsTask, match="inputs of the generator"):
        sc.methods.CoEvolution(**TINY)(g[0], d[1], 3)


def test_genomes_stand_for_masks():
    g, _, x = pair()
    space = space_of(
        g[0], sc.couple(g[0], x[0][:1]), cost=find("costs", "macs")(), budgets=("macs:50%",), example_inputs=x[0][:1]
    )
    bits = space.genomes.random(np.random.default_rng(0))
    assert hexed(space.bits(space.masks(bits))) == hexed(bits)
    assert space.structure(bits) == space.coupling.structure_for(space.masks(bits))
    thin = sc.narrow(g[0], space.masks(bits), x[0][:1], coupling=space.coupling)
    assert space.share(bits) == pytest.approx(
        sc.profile(thin, x[0][:1], seconds=0).macs / sc.profile(g[0], x[0][:1], seconds=0).macs
    )
    assert InProcess()(Arena(generators=(g[0],), judges=(None,), inputs=x[:1], practice=x[:1]))([Job(0, "", None)]) == [
        (0.0, 0.0)
    ]
