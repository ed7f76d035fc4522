"""``python -m benchmarks.coverage [--only torchvision timm transformers] [--names ...] [--peer torch_pruning | kirigami]``."""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.coverage.families import entries
from benchmarks.coverage.running import run
from benchmarks.record import RESULTS, machine

LIBRARIES = ("torchvision", "timm", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=LIBRARIES, choices=LIBRARIES)
    parser.add_argument("--names", nargs="+", default=())
    parser.add_argument("--peer", default="", choices=("", "torch_pruning", "kirigami"))
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", action="store_true", help="run only what did not pass before")
    args = parser.parse_args()
    path = args.out / f"coverage{'_' + args.peer if args.peer else ''}.json"
    rows = {(r["family"], r["name"]): r for r in json.loads(path.read_text())["rows"]} if path.exists() else {}
    for library in args.only:
        for entry in entries(library):
            key = (entry.family, entry.name)
            if (args.names and entry.name not in args.names) or (
                args.keep and rows.get(key, {}).get("outcome") == "passed"
            ):
                continue
            rows[key] = run(entry.family, entry.name, seconds=args.seconds, peer=args.peer)
            print(said(rows[key]), flush=True)
            write(path, list(rows.values()))


def said(row: dict[str, Any]) -> str:
    words = [
        f"{key} {row[key]}"
        for key in ("groups", "ratio", "couple_s", "prune_s", "peak_mb", "difference", "effect", "wall_s")
        if key in row
    ]
    return f"{row['outcome']:8} {row['name']:40} {' '.join(words)} {row.get('error', '')[:300]}"


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    rows = [{k: v for k, v in row.items() if k not in ("stage",)} for row in rows]
    fresh = path.with_suffix(".new")
    about = {"what": "half of the units of every group leave", "machine": machine()}
    lines = ",\n".join(json.dumps(row) for row in rows)
    fresh.write_text(json.dumps(about)[:-1] + ', "rows": [\n' + lines + "\n]}\n")
    fresh.replace(path)


if __name__ == "__main__":
    main()
