"""A CycleGAN compressed by co-evolution, beside random channels, channels of large L1 norm, and narrow networks trained from scratch.

    python -m benchmarks.coevolution --work /tmp/coevolution train search tune measure table page
    python -m benchmarks.coevolution --pair other/folder ...        trainA/ trainB/ testA/ testB/

Every stage keeps its state in --work and goes on from there, so that it may be interrupted. All rows keep the same budget and are
fine-tuned alike, with the losses of CycleGAN and towards the dense generators.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import secateur as sc
from benchmarks.data import DATA
from benchmarks.record import options, record
from secateur.checkpoints import read_checkpoint, write_checkpoint
from secateur.cyclegan import (
    Log,
    Networks,
    PatchDiscriminator,
    ResNetGenerator,
    Training,
    Weights,
    domains,
    initialise_,
    samples,
)
from secateur.evolution import InProcess, Processes, Tuning
from secateur.evolution.genomes import hexed, unhexed
from secateur.evolution.spaces import space_of
from secateur.fidelity import lite0, translation
from secateur.names import criterion_of, find
from secateur.narrowing.recoupling import Narrowed
from secateur.narrowing.thinning import members_of, receipt
from secateur.pictures import grid, png
from secateur.profiling.timing import measure
from secateur.reporting import evolution

BUDGET = ("params:25%", "macs:18%")
ROUND = 8


class Bench:
    """One pair of domains, one dense CycleGAN, and everything that is made of it."""

    def __init__(self, args: Any) -> None:
        self.args, self.work = args, Path(args.work)
        self.work.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        self.a, self.b = domains(args.pair, "train", args.size)
        self.test = tuple(domain.plain() for domain in domains(args.pair, "test", args.size))
        self.x = self.test[0][:1]

    def fresh(self, seed: int = 0) -> Networks:
        g = [initialise_(ResNetGenerator(self.args.width, self.args.blocks), seed=seed + k) for k in (0, 1)]
        d = [initialise_(PatchDiscriminator(32), seed=seed + k) for k in (2, 3)]
        return Networks(*g, *d)

    def train(self) -> None:
        nets = self.fresh()
        training = Training(steps=self.args.steps, constant=0.45)
        log = Log(self.work / "dense")
        start = time.perf_counter()
        training.start(nets, self.a, self.b).train(self.work / "dense", every=250, log=log)
        print(f"dense: {time.perf_counter() - start:.0f} s")

    def dense(self) -> Networks:
        """The dense generators, averaged, and their discriminators."""
        state, nets = read_checkpoint(self.work / "dense" / "run.safetensors"), self.fresh()
        for model, found in zip(nets[:2], state["averages"], strict=True):
            model.load_state_dict(found["model"])
        for model, found in zip(nets[2:], state["networks"][2:], strict=True):
            model.load_state_dict(found)
        return Networks(*(model.eval() for model in nets))

    def spaces(self, nets: Networks) -> list[Any]:
        macs = find("costs", "macs")()
        more = {"cost": macs, "budgets": BUDGET, "example_inputs": self.x, "round_to": ROUND}
        return [space_of(g, sc.couple(g, self.x), **more) for g in nets[:2]]

    def genomes(self) -> dict[str, list[str]]:
        file = self.work / "genomes.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def keep(self, name: str, words: list[str]) -> None:
        found = self.genomes() | {name: words}
        (self.work / "genomes.json").write_text(json.dumps(found, indent=1))

    def method(self, seed: int, **more: Any) -> sc.methods.CoEvolution:
        args = self.args
        chosen = {
            "population": args.population, "generations": args.generations, "budget": BUDGET, "round_to": ROUND,
            "images": 16, "tuning": Tuning(steps=args.tuning, batch=4), "starts": ("magnitude",), "pressure": 4.0,
            "chances": (0.0, 0.6, 0.4), "seed": seed,
        }  # fmt: skip
        return sc.methods.CoEvolution(**(chosen | more))

    def pool(self) -> tuple[Any, Any]:
        """What candidates are scored and tuned on."""
        return self.a.plain(48), self.b.plain(48)

    def search(self) -> None:
        nets = self.dense()
        for seed in range(self.args.seeds):
            start = time.perf_counter()
            pair = self.method(seed)(
                tuple(nets[:2]), tuple(nets[2:]), self.pool(), folder=self.work / f"search{seed}",
                executor=Processes(workers=self.args.workers) if self.args.workers > 1 else InProcess(),
                on_generation=lambda done: print(done["generation"], f"{done['seconds']:.0f} s", [round(s["best"], 3) for s in done["sides"]], flush=True),
            )  # fmt: skip
            self.keep(f"evolved{seed}", [side.report.settings["genome"] for side in pair])
            (self.work / f"history{seed}.json").write_text(json.dumps(pair[0].report.settings["history"]))
            print(f"search {seed}: {time.perf_counter() - start:.0f} s", flush=True)
        self.baselines(nets)

    def baselines(self, nets: Networks) -> None:
        spaces, chance = self.spaces(nets), np.random.default_rng(0)
        self.keep("random", [hexed(space.genomes.random(chance)) for space in spaces])
        self.keep("l1", [hexed(uniform(space, largest(space))) for space in spaces])
        self.keep("scratch", [hexed(uniform(space, largest(space))) for space in spaces])

    def narrow(self, nets: Networks, name: str, words: list[str]) -> list[nn.Module]:
        thin = []
        for k, (space, word) in enumerate(zip(self.spaces(nets), words, strict=True)):
            bits = unhexed(word, space.genomes.size)
            model = sc.narrow(space.model, space.masks(bits), self.x, coupling=space.coupling)
            thin.append(initialise_(model, seed=10 + k) if name == "scratch" else model)
        return thin

    def tune(self) -> None:
        nets = self.dense()
        for name, words in self.genomes().items():
            thin = self.narrow(nets, name, words)
            folder = self.work / f"tuned_{name}"
            write_checkpoint(folder / "before.safetensors", [dict(m.state_dict()) for m in thin])
            judges = self.dense()[2:]
            training = Training(steps=self.args.tune_steps, constant=0.5, weights=Weights(), seed=7, average=0.99)
            start = time.perf_counter()
            run = training.start(Networks(*thin, *judges), self.a, self.b, teachers=tuple(nets[:2]))
            run.train(folder, every=100)
            write_checkpoint(folder / "after.safetensors", [dict(m.state_dict()) for m in run.finish()])
            print(f"{name}: fine-tuned in {time.perf_counter() - start:.0f} s", flush=True)

    def pairs(self, nets: Networks) -> dict[str, tuple[list[nn.Module], list[nn.Module]]]:
        """Every compressed pair before and after fine-tuning."""
        found = {}
        for name, words in self.genomes().items():
            folder = self.work / f"tuned_{name}"
            if (folder / "after.safetensors").exists():
                both = []
                for part in ("before", "after"):
                    thin = self.narrow(nets, "", words)
                    for model, state in zip(thin, read_checkpoint(folder / f"{part}.safetensors"), strict=True):
                        model.load_state_dict(state)
                    both.append([model.eval() for model in thin])
                found[name] = (both[0], both[1])
        return found

    def measure(self) -> None:
        nets = self.dense()
        features = lite0(self.args.feature_size)
        count = self.args.images
        a, b = torch.cat([self.test[0], self.a.plain(count)]), torch.cat([self.test[1], self.b.plain(count)])
        judges, dense, real = tuple(nets[2:]), tuple(nets[:2]), (features(a), features(b))
        file = self.work / "quality.json"
        rows = json.loads(file.read_text()) if file.exists() else {}
        pairs = {"dense": (None, list(nets[:2]))} | self.pairs(nets)
        for name, (before, after) in pairs.items():
            if name in rows:
                continue
            row: dict[str, Any] = {"name": name, "params": [], "macs": []}
            for k, model in enumerate(after):
                profile = sc.profile(model, self.x, seconds=0)
                full = sc.profile(nets[k], self.x, seconds=0)
                row["params"].append(profile.params / full.params)
                row["macs"].append(profile.macs / full.macs)
            row["all"] = translation(tuple(after), a, b, features=features, real=real)
            row["test"] = translation(tuple(after), *self.test, discriminators=judges, dense=dense)
            if before:
                row["before"] = translation(tuple(before), *self.test, discriminators=judges, dense=dense)
            rows[name] = row
            file.write_text(json.dumps(rows, indent=1))
            print(name, row["all"], flush=True)
        (self.work / "latency.json").write_text(json.dumps(self.latencies(pairs), indent=1))
        pictures = [self.test[0][:12]] + [
            samples(tuple(after), self.test[0][:12], self.test[1][:12])[1] for _, after in pairs.values()
        ]
        pictures += [self.test[1][:12]] + [
            samples(tuple(after), self.test[0][:12], self.test[1][:12])[4] for _, after in pairs.values()
        ]
        (self.work / "pictures.png").write_bytes(png(grid(pictures)))

    def latencies(self, pairs: Any) -> dict[str, Any]:
        """How many times faster than dense: batch 1, one thread, all in turns; torch and ONNX Runtime."""
        import onnxruntime

        names = list(pairs)
        models = [model.eval() for _, after in pairs.values() for model in after]
        with torch.no_grad():
            torch_ms = [t.median_ms for t in measure([lambda m=m: m(self.x) for m in models], seconds=4)]
        chosen = onnxruntime.SessionOptions()
        chosen.intra_op_num_threads = chosen.inter_op_num_threads = 1
        sessions = []
        for k, model in enumerate(models):
            path = self.work / f"{k}.onnx"
            sc.export.onnx(model, self.x, path)
            sessions.append(onnxruntime.InferenceSession(str(path), chosen, providers=["CPUExecutionProvider"]))
        x = self.x.numpy()
        ort_ms = [
            t.median_ms
            for t in measure([lambda s=s: s.run(None, {s.get_inputs()[0].name: x}) for s in sessions], seconds=4)
        ]
        found = {}
        for k, name in enumerate(names):
            found[name] = {
                runtime: {"ms": ms[2 * k : 2 * k + 2], "faster": [ms[s] / ms[2 * k + s] for s in (0, 1)]}
                for runtime, ms in (("torch", torch_ms), ("onnxruntime", ort_ms))
            }
        return found

    def page(self) -> None:
        """The first evolved pair, fine-tuned, as a page with pictures."""
        nets = self.dense()
        _, after = self.pairs(nets)["evolved0"]
        history = json.loads((self.work / "history0.json").read_text())
        pair = []
        for k, (space, word) in enumerate(zip(self.spaces(nets), self.genomes()["evolved0"], strict=True)):
            masks = space.masks(unhexed(word, space.genomes.size))
            said = {"history": history, "side": k, "genome": word}
            method = (
                f"channels of a pair co-evolved, budget {', '.join(BUDGET)}, then trained {self.args.tune_steps} steps"
            )
            narrowed = Narrowed(after[k], nets[k], masks, space.coupling)
            pair.append(receipt(narrowed, example_inputs=self.x, before=nets[k], method=method, settings=said))
        quality = {}
        for name, row in json.loads((self.work / "quality.json").read_text()).items():
            quality[name] = {
                f"{what} {way}": row["all"][way][what] for what in ("frechet", "kid") for way in ("ab", "ba")
            }
            quality[name] |= {f"cycle {way}": row["test"][way]["cycle"] for way in ("ab", "ba")}
        shown = [domain[:8] for domain in self.test]
        names = ("A", "B") if self.args.pair.name != "orange2lemon" else ("orange", "lemon")
        print(evolution.write(self.work / "pair.html", pair, nets[:2], shown, names=names, quality=quality))

    def table(self) -> None:
        rows = json.loads((self.work / "quality.json").read_text())
        times = json.loads((self.work / "latency.json").read_text())
        histories = {f.stem: json.loads(f.read_text()) for f in sorted(self.work.glob("history*.json"))}
        for name, row in rows.items():
            row["latency"] = times.get(name)
        about = {"budget": BUDGET, "round_to": ROUND, "histories": histories}
        settings = {key: value for key, value in vars(self.args).items() if isinstance(value, int | float)}
        print(record("coevolution", rows.values(), out=self.args.out, settings=settings, **about))
        print(lines(rows))


def uniform(space: Any, order: dict[str, Any], step: int = ROUND) -> Any:
    """The same part of every group, within a group by ``order``; what the budget has left goes to the groups in turns."""
    genomes = space.genomes

    def bits_of(counts: dict[str, int]) -> Any:
        return genomes.joined(
            {name: np.isin(np.arange(units), order[name][: counts[name]]) for name, units in genomes.units}
        )

    for part in np.arange(1.0, 0.0, -0.005):
        counts = {name: max(step, int(units * part) // step * step) for name, units in genomes.units}
        if genomes.within(bits_of(counts)):
            break
    for name, units in sorted(genomes.units, key=lambda group: -group[1]):
        more = counts | {name: min(units, counts[name] + step)}
        counts = more if genomes.within(bits_of(more)) else counts
    return bits_of(counts)


def largest(space: Any) -> dict[str, Any]:
    """Units of every group by falling L1 norm."""
    from secateur.coupling.channels import Channels

    channels = Channels(groups=space.coupling.groups())
    scores = criterion_of("magnitude")(space.model, members_of(space.coupling, space.model), None)
    return {name: table.reshape(-1).argsort(descending=True).numpy() for name, table in channels.pool(scores).items()}


def lines(rows: dict[str, Any]) -> str:
    """The table of the page."""
    said = [
        "| pair | params | MACs | torch | ORT | Frechet A→B | B→A | KID A→B | B→A | cycle A | cycle B | off dense |",
        "|---" * 12 + "|",
    ]
    for name, row in rows.items():
        both, test, times = row["all"], row["test"], row["latency"] or {}
        cells = [name, *(f"{100 * np.mean(row[key]):.1f} %" for key in ("params", "macs"))]
        cells += [f"{np.mean(times[r]['faster']):.2f}x" if times else "" for r in ("torch", "onnxruntime")]
        cells += [f"{both[d]['frechet']:.0f}" for d in ("ab", "ba")] + [f"{both[d]['kid']:.4f}" for d in ("ab", "ba")]
        cells += [f"{test[d]['cycle']:.4f}" for d in ("ab", "ba")] + [
            f"{np.mean([test[d]['off_dense'] for d in ('ab', 'ba')]):.4f}"
        ]
        said.append("| " + " | ".join(cells) + " |")
    return "\n".join(said)


def main() -> None:
    """Run the stages that are named."""
    parser = options(__doc__)
    parser.add_argument("stages", nargs="*", default=["train", "search", "tune", "measure", "table", "page"])
    parser.add_argument("--pair", type=Path, default=DATA / "gan" / "orange2lemon")
    parser.add_argument("--work", type=Path, required=True)
    for name, value in (
        ("size", 64), ("width", 24), ("blocks", 6), ("steps", 3600), ("population", 12), ("generations", 12),
        ("tuning", 4), ("tune-steps", 500), ("workers", 1), ("images", 250), ("feature-size", 128),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    bench = Bench(args)
    for stage in args.stages:
        getattr(bench, stage)()


if __name__ == "__main__":
    main()
