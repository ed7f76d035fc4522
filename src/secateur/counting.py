"""From fractions to exact counts. Every allocation ends here, so rounding is decided once."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral, Real

from secateur.errors import BadSparsity, UnknownName

__all__ = [
    "check_choice",
    "check_number",
    "check_progress",
    "check_seed",
    "check_sparsity",
    "is_count",
    "kept_of",
    "lookup_per_layer",
    "share_out",
]


def check_sparsity(sparsity: float, what: str = "sparsity") -> float:
    """Return ``sparsity`` if it is a fraction removed, in [0, 1).

    >>> check_sparsity(90)
    Traceback (most recent call last):
    secateur.errors.BadSparsity: sparsity=90 is not a fraction in [0, 1); it is the part that is removed: for 90 % write 0.9

    Raises:
        BadSparsity: it is not.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        percent = isinstance(sparsity, int | float) and 1 < sparsity <= 100
        hint = f": for {sparsity:g} % write {sparsity / 100:g}" if percent else ""
        raise BadSparsity(f"{what}={sparsity!r} is not a fraction in [0, 1); it is the part that is removed{hint}")
    return float(sparsity)


def check_choice(name: str, value: object, words: Sequence[object], also: str = "") -> None:
    """Refuse a setting that is none of ``words``; ``also`` says what else it could be.

    Raises:
        UnknownName: it is none of them.
    """
    if value not in words:
        raise UnknownName(f"{name}={value!r} is not known: use {also}{' or '.join(map(repr, words))}")


def is_count(value: object) -> bool:
    """Whether it is a whole number, and no truth value.

    >>> is_count(3), is_count(2.5), is_count(True)
    (True, False, False)
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_number(name: str, value: object, least: float, *, whole: bool = False, above: bool = False) -> None:
    """Refuse a setting that is no number, or below ``least`` (with ``above``: not above it).

    >>> check_number("passes", 1.5, 0, whole=True)
    Traceback (most recent call last):
    secateur.errors.BadSparsity: passes=1.5 makes no sense: it is a whole number of 0 or more

    Raises:
        BadSparsity: it is one of these.
    """
    real = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not real or not least <= value < math.inf or (above and value == least):  # type: ignore[operator]
        kind = "a whole number" if whole else "a number"
        raise BadSparsity(
            f"{name}={value!r} makes no sense: it is {kind} {f'above {least:g}' if above else f'of {least:g} or more'}"
        )


def check_seed(seed: object) -> None:
    """Refuse what torch does not take for the seed of a generator.

    >>> check_seed(1.5)
    Traceback (most recent call last):
    secateur.errors.UnknownName: seed=1.5 seeds nothing: it is a whole number (an int), such as seed=0

    Raises:
        UnknownName: it is no whole number of 64 bits.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not -(1 << 63) <= seed < 1 << 64:
        raise UnknownName(f"seed={seed!r} seeds nothing: it is a whole number (an int), such as seed=0")


def check_progress(progress: object) -> None:
    """Refuse what cannot be told how far a run is.

    Raises:
        UnknownName: it cannot be called.
    """
    if progress is not None and not callable(progress):
        raise UnknownName(
            f"progress={progress!r} cannot be called: pass a function that is told (done, all, what, seconds left), such as progress=print"
        )


def kept_of(sparsity: float, total: int, min_kept: int = 0) -> int:
    """How many of ``total`` stay: ``round((1 - sparsity) * total)``, at least ``min_kept`` (or all there are).

    >>> kept_of(0.95, 32_360)
    1618
    """
    return max(min(min_kept, total), round((1 - sparsity) * total))


def share_out(
    shares: Mapping[str, float], keep: int, *, limits: Mapping[str, int], min_kept: int = 0
) -> dict[str, int]:
    """Give out exactly ``keep`` units in proportion to ``shares``, none above its limit or below ``min_kept``.

    A name that reaches its limit is full, and the rest share what is left (the capping of ERK). Remainders go to the
    largest fractional parts, ties to earlier names.

    >>> share_out({"a": 3.0, "b": 1.0}, 10, limits={"a": 6, "b": 10})
    {'a': 6, 'b': 4}
    """
    floors = {name: min(min_kept, limits[name]) for name in shares}
    fixed = _cap(shares, keep, limits, floors)
    open_names = [name for name in shares if name not in fixed]
    left = keep - sum(fixed.values())
    total = sum(shares[name] for name in open_names)
    exact = {name: left * shares[name] / total if total else 0.0 for name in open_names}
    counts = {name: fixed.get(name, math.floor(exact.get(name, 0.0))) for name in shares}
    by_remainder = sorted(open_names, key=lambda name: -(exact[name] - math.floor(exact[name])))
    for name in by_remainder + list(shares):
        if sum(counts.values()) >= keep:
            break
        counts[name] += int(counts[name] < limits[name])
    return counts


def _cap(
    shares: Mapping[str, float], keep: int, limits: Mapping[str, int], floors: Mapping[str, int]
) -> dict[str, int]:
    """Fix names at their limit or floor until the rest can share freely."""
    if sum(floors.values()) > keep:
        raise BadSparsity(
            f"{keep} units may stay, but the minimum kept per layer asks for {sum(floors.values())}; lower min_kept or the sparsity"
        )
    fixed: dict[str, int] = {}
    while True:
        free = [name for name in shares if name not in fixed]
        total = sum(shares[name] for name in free)
        left = keep - sum(fixed.values())
        wanted = {name: left * shares[name] / total if total else 0.0 for name in free}
        over = {name: limits[name] for name in free if wanted[name] > limits[name]}
        under = {name: floors[name] for name in free if wanted[name] < floors[name]}
        if not over and not under:
            return fixed
        # Whichever side weighs more is final; the other may be undone by what this sets free, so it waits for a later round.
        excess = sum(wanted[name] - limits[name] for name in over) - sum(floors[name] - wanted[name] for name in under)
        fixed |= (over if excess >= 0 else {}) | (under if excess <= 0 else {})


def _names(key: str, parameter: str) -> bool:
    """Whether a key is the parameter, a module that it sits in, or a glob over either."""
    path = parameter.rpartition(".")[0]
    return parameter == key or parameter.startswith(f"{key}.") or fnmatchcase(parameter, key) or fnmatchcase(path, key)


def lookup_per_layer(table: Mapping[str, float], names: list[str], what: str) -> dict[str, float]:
    """Match a user's table of layers to parameter names: exact name, module path, or glob; the first match wins.

    Raises:
        UnknownName: a key matches nothing.
    """
    found: dict[str, float] = {}
    for key, value in table.items():
        hits = [n for n in names if _names(key, n)]
        if not hits:
            raise UnknownName(
                f"{what} names {key!r}, which matches none of {len(names)} prunable parameters: {', '.join(names[:8])}"
            )
        for name in hits:
            found.setdefault(name, value)
    return found
