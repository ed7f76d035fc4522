"""Layer-wise ADMM (ALPS) on MiniLM without labels or training: 2:4 and 70 % in every linear layer; reconstruction error and task score.

    magnitude          by size, nothing else
    scaled             by |w| times the size of its input (what ADMM's first projection does; Wanda, Sun et al. 2024)
    scaled, refit      the same masks, then conjugate gradients on the support
    ALPS               ADMM, then conjugate gradients

Calibration: 128 sentence pairs of STS-B's training set, without scores. Score: Spearman's correlation on its development set, times 100.

    python -m benchmarks.layer_wise      (needs transformers, and the weights that `benchmarks.models` knows)
"""

import time
from pathlib import Path
from typing import Any

import torch

import secateur as sc
from benchmarks.filters.networks import minilm
from benchmarks.record import options, record

WEIGHTS = Path.home() / ".cache" / "secateur-weights"
LINEAR = ["embeddings"]


def main() -> None:
    """Write ``results/layer_wise.json``."""
    parser = options(__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = minilm(args.weights, 0)
    task = sc.Task(network.calibration, loss=network.loss)
    rows: list[dict[str, Any]] = [{"method": "dense", "pattern": "", "score": network.judge(network.model)}]
    print(rows[0], flush=True)
    for pattern, sparsity in (("2:4", None), ("unstructured", 0.7)):
        for name in ("magnitude", "scaled", "scaled, refit", "ALPS"):
            start = time.process_time()
            if name == "magnitude":
                more = {} if sparsity is None else {"sparsity": sparsity, "scope": "layer"}
                pruned = sc.prune(network.model, granularity=pattern, ignore=LINEAR, **more)
            else:
                settings = {"iterations": 300 if name == "ALPS" else 1, "refit": 0 if name == "scaled" else 20}
                method = sc.methods.ALPS(sparsity=sparsity, granularity=pattern, ignore=LINEAR, **settings)
                pruned = method(network.model, task=task)
            errors = (pruned.report.settings or {}).get("errors", {})
            seconds = time.process_time() - start
            rows.append(
                {
                    "method": name,
                    "pattern": pattern if sparsity is None else f"{sparsity:.0%}",
                    "score": network.judge(pruned.model),
                    "error": sum(errors.values()) / len(errors) if errors else None,
                    "cpu_seconds": round(seconds, 1),
                    "layers": len(pruned.masks),
                    "sparsity": pruned.masks.sparsity,
                }
            )
            print(rows[-1], flush=True)
            if not args.quick:
                record("layer_wise", rows, out=args.out)


if __name__ == "__main__":
    main()
