"""Budgets in words."""

import pytest

from secateur.budgets import Budget, spelled
from secateur.errors import UnknownName

UNITS = {"macs": "", "params": "", "bytes": "bytes", "latency": "ms", "energy": "µJ"}


@pytest.mark.parametrize(
    ("text", "cost", "amount", "relative"),
    [
        ("macs:50%", "macs", 0.5, True),
        ("macs:1.0G", "macs", 1e9, False),
        (" params : 1M ", "params", 1e6, False),
        ("params:1000000", "params", 1e6, False),
        ("params:1e6", "params", 1e6, False),
        ("bytes:2MB", "bytes", 2e6, False),
        ("bytes:2MiB", "bytes", 2 * 2**20, False),
        ("latency:8ms", "latency", 8, False),
        ("latency:0.5s", "latency", 500, False),
        ("latency:800us", "latency", 0.8, False),
        ("energy:40%", "energy", 0.4, True),
        ("my.costs:Carbon:30%", "my.costs:Carbon", 0.3, True),
    ],
)
def test_reading(text, cost, amount, relative):
    found = Budget.of(text, UNITS)
    assert (found.cost, found.relative) == (cost, relative)
    assert found.amount == pytest.approx(amount)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("50%", "write cost:amount"),
        ("macs", "write cost:amount"),
        ("macs:0%", "between 0 % and 100 %"),
        ("macs:120%", "between 0 % and 100 %"),
        ("latency:8", "'latency' needs a unit"),
        ("latency:8MB", "MB is no unit"),
        ("params:0", "nothing at all"),
        ("macs:-5%", "write cost:amount"),
        ("macs:1.2.3%", "write cost:amount"),
        ("macs:.%", "write cost:amount"),
        ("params:1e400", "write cost:amount"),
    ],
)
def test_refusing(text, match):
    with pytest.raises(UnknownName, match=match):
        Budget.of(text, UNITS)


def test_limits():
    assert Budget.of("macs:25%").limit(400) == 100
    assert Budget.of("macs:1k").limit(400) == 1000


def test_spelling():
    assert spelled(150_400_000, "") == "150.4 M"
    assert spelled(12, "bytes") == "12 bytes"
    assert spelled(1500, "bytes") == "1.5 kB"
    assert spelled(3.14159, "ms") == "3.142 ms"
