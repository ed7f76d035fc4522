"""What a user chose by words, made into the object that prunes. Strings become objects here, and only here."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from secateur.amounts import Amount
from secateur.errors import UnknownName
from secateur.methods.channel import Channel
from secateur.methods.one_shot import OneShot
from secateur.names import build, find, granularity_of, names_in
from secateur.protocols import Criterion, Granularity
from secateur.targets import Ignore

__all__ = ["Choice"]

_OF_CHANNELS = ("round_to", "heads", "norms", "repair", "fallback", "cost_weight")


@final
@dataclass(frozen=True, kw_only=True)
class Choice:
    """The arguments of `secateur.prune` that say what is pruned and by what.

    Raises:
        UnknownName: there is no such method, or it does not go with the others.
    """

    method: str | Criterion
    granularity: str | Granularity
    ignore: Ignore | Iterable[Ignore] = ()
    include_bias: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.own is not None and self.include_bias and not hasattr(self.own, "include_bias"):
            raise UnknownName(f"the method {self.method!r} prunes no biases: leave include_bias out")

    def built(self, amount: Amount, options: dict[str, Any]) -> Any:
        """The method that leaves ``amount``."""
        if self.own is not None:
            return self._own_within(amount, options)
        if self.granularity == "channel":
            shape = {key: options[key] for key in _OF_CHANNELS if key in options}
            rest = {key: value for key, value in options.items() if key not in shape}
            groups = amount.of_groups()
            criterion = self._criterion(rest, more=_OF_CHANNELS)
            return Channel(criterion=criterion, allocation=groups, ignore=self.ignore, **shape)
        pattern = granularity_of(self.granularity)
        allocation = None if amount.said_by(pattern) else amount.allocation()
        return self._masks(pattern, options, allocation=allocation)

    def priced(self, options: dict[str, Any]) -> Any:
        """The same for single weights, rows, blocks, ... that a budget will say the amount of."""
        if self.own is None:
            return self._masks(granularity_of(self.granularity), options, allocation=None)
        if not hasattr(self.own, "clocked"):
            raise UnknownName(f"{self.method!r} keeps no budget: pass sparsity=, or use 'layer_obs' or a criterion")
        return self._build({"granularity": granularity_of(self.granularity), "seed": self.seed} | options)

    @cached_property
    def own(self) -> Any:
        """A method of its own that is called by its name, if it is one."""
        if not isinstance(self.method, str) or self.method not in names_in("methods"):
            return None
        found = find("methods", self.method)
        own = getattr(found, "by_name", None)
        if own == "any" and self.granularity == "channel":
            raise UnknownName(
                f"the method {self.method!r} sets weights to zero and keeps all widths; to take channels out, rank them by a criterion, e.g. "
                "'reconstruction' or 'taylor_map' with granularity='channel' and repair=True"
            )
        if own is not None and own not in ("any", self.granularity):
            raise UnknownName(
                f"the method {self.method!r} takes whole units out: pass granularity={own!r} and example_inputs="
            )
        return None if own is None else found

    def _own_within(self, amount: Amount, options: dict[str, Any]) -> Any:
        """What it is not told, it finds out."""
        asked, how = amount.is_given, dict[str, Any]()
        if self.own.by_name == "any":
            how = {"granularity": (pattern := granularity_of(self.granularity)), "seed": self.seed}
            asked = asked and not amount.said_by(pattern)
        whole = amount.allocation if getattr(self.own, "may_empty", False) else amount.of_groups
        return self._build(how | {"allocation": whole() if asked else None} | options)

    def _build(self, how: dict[str, Any]) -> Any:
        told: dict[str, Any] = {"ignore": self.ignore}
        if self.include_bias is not None and hasattr(self.own, "include_bias"):
            told["include_bias"] = self.include_bias
        return build(self.own, told | how, f"method {self.method!r}")

    def _masks(self, pattern: Granularity, options: dict[str, Any], *, allocation: Any) -> OneShot:
        return OneShot(
            allocation=allocation,
            criterion=self._criterion(options),
            granularity=pattern,
            ignore=self.ignore,
            include_bias=bool(self.include_bias),
        )

    def _criterion(self, options: dict[str, Any], *, more: Iterable[str] = ()) -> Criterion:
        if not isinstance(self.method, str):
            if options:
                raise UnknownName(
                    f"{self.method} is an object and takes no further options, but got {', '.join(options)}"
                )
            return self.method
        if self.method in names_in("methods"):
            raise UnknownName(
                f"{self.method!r} is a method with a training loop or parts of its own: use sc.methods.{find('methods', self.method).__name__}(...)"
            )
        found = find("criteria", self.method)
        if "seed" in getattr(found, "__dataclass_fields__", {}):
            options = {"seed": self.seed} | options
        return build(found, options, f"method {self.method!r}", more=more)  # type: ignore[no-any-return]
