"""What a receipt says in plain words: what pays here, and what does not."""

from collections.abc import Iterator

from secateur.report import Profile, Report
from secateur.reporting.wording import bytes_of, count, percent, short, threads_of

__all__ = ["nothing_removed", "verdict"]


def nothing_removed(report: Report) -> bool:
    """Whether the model has as many non-zero parameters as before, or more."""
    return report.after.nonzeros >= report.before.nonzeros


def verdict(report: Report) -> list[str]:
    """The sentences, most important first.

    >>> same = Profile(model="Net", params=10, nonzeros=10)
    >>> verdict(Report(before=same, after=same))
    ['NOTHING WAS REMOVED: the model has 10 non-zero parameters, as before.']
    """
    return [*_removal(report), *_disk(report), *_work(report), *_speed(report), *_score(report), *_gaps(report)]


def _removal(report: Report) -> Iterator[str]:
    before, after = report.before, report.after
    if after.nonzeros == before.nonzeros:
        yield f"NOTHING WAS REMOVED: the model has {count(after.nonzeros)} non-zero parameters, as before."
        return
    if after.nonzeros > before.nonzeros:
        yield (
            f"NOTHING WAS REMOVED: the model has {count(after.nonzeros)} non-zero parameters, "
            f"{count(after.nonzeros - before.nonzeros)} more than before."
        )
        return
    gone = 1 - after.nonzeros / before.nonzeros
    left = (
        f"{percent(gone)} of the non-zero parameters are gone: {count(before.nonzeros)} became {count(after.nonzeros)}."
    )
    if after.params < before.params:
        left += f" {count(before.params - after.params)} left the model, {count(after.params - after.nonzeros)} are zeros in it."
    yield left


def _disk(report: Report) -> Iterator[str]:
    before, after = report.before, report.after
    if not before.dense_bytes or not after.dense_bytes or nothing_removed(report):
        return
    parts = []
    if after.packed_bytes:
        parts.append(f"{_times(before.dense_bytes, after.packed_bytes)} with sc.save ({bytes_of(after.packed_bytes)})")
    if after.gzip_bytes and before.gzip_bytes:
        parts.append(
            f"{_times(before.gzip_bytes, after.gzip_bytes)} after gzip of the plain file ({bytes_of(after.gzip_bytes)})"
        )
    plain = "as large as before" if after.dense_bytes == before.dense_bytes else bytes_of(after.dense_bytes)
    zeros = ", since zeros take room there" if after.dense_bytes == before.dense_bytes else ""
    said = "; ".join([f"on disk: {parts[0]}", *parts[1:]]) if parts else "on disk"
    yield f"{said[0].upper()}{said[1:]}; the plain file is {plain}{zeros}."


def _work(report: Report) -> Iterator[str]:
    before, after = report.before, report.after
    if before.macs is None or after.macs is None or after.nonzero_macs is None or nothing_removed(report):
        return
    if after.macs < before.macs:
        yield f"Work: {_times(before.macs, after.macs, 'less')}, {short(before.macs)} multiply-accumulates became {short(after.macs)}."
    idle = 1 - after.nonzero_macs / after.macs if after.macs else 0.0
    if idle >= 0.0005:
        yield f"{percent(idle)} of its {short(after.macs)} multiply-accumulates have a weight of zero; dense kernels carry them out all the same."


def _speed(report: Report) -> Iterator[str]:
    before, after = report.before.latency, report.after.latency
    if before is None or after is None:
        return
    where = f"here ({after.device}, {threads_of(after)})"
    factor = before.median_ms / after.median_ms if after.median_ms else 1.0
    if nothing_removed(report):
        yield f"Speed {where}: {factor:.2f}x{', within noise' if before.overlaps(after) else ''}."
        return
    zeros = "The zeros do" if report.after.params == report.before.params else "Pruning does"
    if before.overlaps(after) and not 0.9 < factor < 1.1:
        yield f"Whether it is faster {where} cannot be told: {factor:.2f}x is within noise. Measure for longer, on a quiet machine."
    elif before.overlaps(after):
        yield f"{zeros} not make it faster {where}: {factor:.2f}x, within noise."
    elif factor > 1:
        yield f"It is faster {where}: {factor:.2f}x."
    else:
        yield f"{zeros} not make it faster {where}: it is {1 / factor:.2f}x slower."


def _score(report: Report) -> Iterator[str]:
    before, after = report.before.score, report.after.score
    if before is None or after is None:
        return
    moved = "stayed at" if after == before else "rose" if after > before else "fell"
    yield (
        f"The score {moved} {after:.4f}." if after == before else f"The score {moved} from {before:.4f} to {after:.4f}."
    )
    for name, score in report.controls.items():
        yield f"Control at the same sparsity, {name}: {score:.4f}."


def _gaps(report: Report) -> Iterator[str]:
    missing = dict.fromkeys((*report.before.uncounted, *report.after.uncounted))
    if missing:
        yield uncounted_sentence(tuple(missing))


def uncounted_sentence(uncounted: tuple[str, ...]) -> str:
    """Say which operations are missing from the MACs."""
    shown = ", ".join(uncounted[:4]) + (f" and {len(uncounted) - 4} more" if len(uncounted) > 4 else "")
    return f"MACs are too low: {len(uncounted)} operation(s) have no rule and were not counted: {shown}."


def _times(before: float, after: float, word: str = "smaller") -> str:
    factor = before / after
    opposite = {"smaller": "larger", "less": "more"}[word]
    return f"{factor:.1f}x {word}" if factor >= 1 else f"{1 / factor:.1f}x {opposite}"


def profile_verdict(profile: Profile) -> list[str]:
    """What a single profile has to say: gaps and notes."""
    return [uncounted_sentence(profile.uncounted)] if profile.uncounted else []
