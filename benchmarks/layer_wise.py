"""Layer-wise ADMM (ALPS) on MiniLM without labels or training: 2:4 in the linear layers of its upper half; reconstruction error and task score.

    magnitude          by size, nothing else
    scaled             by |w| times the size of its input (what ADMM's first projection does; Wanda, Sun et al. 2024)
    scaled, refit      the same masks, then conjugate gradients on the support
    ALPS               ADMM, then conjugate gradients

Calibration: 128 sentence pairs of STS-B's training set, without scores. Score: Spearman's correlation on its development set, times 100.

    python -m benchmarks.layer_wise      (needs tokenizers, and the weights that `benchmarks.models` knows)
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur as sc
from benchmarks.data import DATA, WEIGHTS
from benchmarks.models.cases import CASES, _file, _spearman
from benchmarks.record import options, record

PATTERN = "2:4"
LINEAR = ["embeddings", *(f"encoder.layer.{k}.*" for k in range(3))]


class Words:
    """WordPiece tokens, padded. (`tokenizers` itself: the constructor of transformers' class changed its meaning in version 5.)"""

    def __init__(self, vocabulary: Path) -> None:
        from tokenizers import BertWordPieceTokenizer

        self.words = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        self.words.enable_padding()
        self.words.enable_truncation(64)

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.words.encode_batch(texts)
        return torch.tensor([f.ids for f in found]), torch.tensor([f.attention_mask for f in found])


def score(model: nn.Module, words: Words, rows: list[list[str]]) -> float:
    """Spearman's correlation with people's scores, times 100."""
    with torch.no_grad():
        sides = [
            torch.cat([model(*words([row[k] for row in rows[n : n + 50]])) for n in range(0, len(rows), 50)])
            for k in (5, 6)
        ]
    return 100 * _spearman((sides[0] * sides[1]).sum(1), torch.tensor([float(row[4]) for row in rows]))


def rows_in(part: str) -> list[list[str]]:
    """Sentence pairs of STS-B."""
    text = (DATA / "stsb" / f"sts-{part}.csv").read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines()]


def main() -> None:
    """Write ``results/layer_wise.json``."""
    parser = options(__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = CASES["minilm_l6"].load(args.weights).eval()
    words, judged, train = Words(_file("*/*/model/vocab.txt", args.weights)), rows_in("dev"), rows_in("train")
    batches = [words([row[k] for row in train[n : n + 16] for k in (5, 6)]) for n in range(0, 128, 16)]
    task = sc.Task(batches, loss=lambda model, batch: model(*batch).sum())
    rows: list[dict[str, Any]] = [{"method": "dense", "pattern": "", "score": score(network, words, judged)}]
    print(rows[0], flush=True)
    for name in ("magnitude", "scaled", "scaled, refit", "ALPS"):
        start = time.process_time()
        if name == "magnitude":
            pruned = sc.prune(network, granularity=PATTERN, ignore=LINEAR)
        else:
            settings = {"iterations": 60 if name == "ALPS" else 1, "refit": 0 if name == "scaled" else 20}
            method = sc.methods.ALPS(granularity=PATTERN, ignore=LINEAR, **settings)
            pruned = method(network, task=task)
        errors = (pruned.report.settings or {}).get("errors", {})
        seconds = time.process_time() - start
        rows.append(
            {
                "method": name,
                "pattern": PATTERN,
                "score": score(pruned.model, words, judged),
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
