"""The fitted cost: exact on a cost that is bilinear, tables that round-trip, meters that say what they are."""

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.budgets import Budget
from secateur.costs.macs import Macs
from secateur.criteria.magnitude import Magnitude
from secateur.energy.bilinear import fit_bilinear, measure_widths, sample_widths
from secateur.energy.meters import find_meter
from secateur.energy.tables import CostTable
from secateur.narrowing.meeting import Limit, pricing_of

X = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    """A branch that adds up, and a depthwise layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16 * 64, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head((x + self.point(self.depth(x))).flatten(1))


@pytest.fixture(scope="module")
def coupled():
    torch.manual_seed(0)
    model = Net().eval()
    return model, sc.couple(model, X)


def test_a_bilinear_cost_is_found_from_as_many_widths_as_it_has_terms(coupled):
    model, coupling = coupled
    truth = pricing_of(Macs(), coupling, model, X)
    widths = sample_widths(coupling, 30, seed=0)
    table = CostTable.of(widths, [5e4 + 3 * truth(row) for row in widths], unit="µJ", measured="made up")
    fitted = fit_bilinear(table.part(range(8)), model, coupling, example_inputs=X, terms=Macs(), ridge=1e-9)
    assert fitted.error(table.part(range(8, 30))) < 1e-3
    assert fitted.names[0] == "constant"
    assert min(fitted.coefficients) >= 0  # more of a layer never costs less
    assert len({tuple(row.items()) for row in widths}) > 10
    assert widths[0] == dict(truth.units)


def test_branches_share_a_width_and_flattened_maps_count_channels(coupled):
    _, coupling = coupled
    assert len(sample_widths(coupling, 2)[0]) == 1  # stem, depthwise, pointwise and the sum are one group
    assert all(row["stem.weight"] % 4 == 0 for row in sample_widths(coupling, 9, round_to=4))


def test_a_fitted_cost_is_a_budget(coupled):
    model, coupling = coupled
    widths = sample_widths(coupling, 12, seed=1)
    truth = pricing_of(Macs(), coupling, model, X)
    table = CostTable.of(widths, [truth(row) for row in widths], unit="µJ")
    fitted = fit_bilinear(table, model, coupling, example_inputs=X, terms=Macs())
    limit = Limit(budget=Budget("phone", 0.5, relative=True), cost=fitted)
    pruned = sc.methods.Channel(criterion=Magnitude(), allocation=limit)(model, example_inputs=X)
    dense, now = fitted.measure([model, pruned.model], X)
    assert 0.35 * dense < now <= 0.5 * dense
    with pytest.raises(sc.errors.WrongModel, match="lacks"):
        fitted.measure([nn.Linear(2, 2)], X)


def test_measured_tables_round_trip(coupled, tmp_path):
    model, coupling = coupled
    widths = sample_widths(coupling, 3)
    table = measure_widths(model, coupling, widths, example_inputs=X, meter=find_meter(), seconds=0.02)
    again = CostTable.read(table.write(tmp_path / "phone.csv"))
    assert again == table
    assert min(table.costs) > 0


def test_a_damaged_table_is_named(tmp_path):
    path = tmp_path / "t.csv"
    good = "# secateur cost table 1\n# unit: mJ\na,b,cost\n1,2,3.5\n"
    for text, message in [
        ("a,b\n", "first line"),
        (good.replace("1,2,3.5", "1,x,3.5"), "line 4"),
        (good.replace("1,2,3.5", "1,2"), "line 4"),
        (good.replace("3.5", "-1"), "above 0"),
        (good.replace("3.5", "nan"), "above 0"),
        (good.replace("a,b,cost", "a,b,price"), "line 3"),
        ("# secateur cost table 1\n", "no line of names"),
    ]:
        path.write_text(text)
        with pytest.raises(sc.errors.BadFile, match=message):
            CostTable.read(path)
    path.write_text(good)
    assert CostTable.read(path).counts == [{"a": 1, "b": 2}]


def test_other_groups_are_refused(coupled):
    model, coupling = coupled
    table = CostTable(groups=("other",), widths=((1,), (2,)), costs=(1.0, 2.0))
    with pytest.raises(sc.errors.BadSparsity, match="measure at least two widths"):
        fit_bilinear(table, model, coupling, example_inputs=X, terms=Macs())


def test_meters(tmp_path):
    clock = find_meter(powercap=tmp_path)
    assert "NOT energy" in clock.says
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "max_energy_range_uj").write_text("1000\n")
    counter = package / "energy_uj"
    counter.write_text("900\n")
    meter = find_meter(powercap=tmp_path)
    assert meter.unit == "µJ"
    spent = iter([0, 0, 10] + [0] * 100)

    def call():
        now = (int(counter.read_text()) + next(spent)) % 1000
        counter.write_text(str(now))

    assert meter.per_call(call, seconds=1e-9, rounds=2) in (0.0, 10.0)
    counter.write_text("995")
    wrapped = iter([0, 0, 10])
    assert (
        meter.per_call(
            lambda: counter.write_text(str((int(counter.read_text()) + next(wrapped)) % 1000)), seconds=1e-9, rounds=1
        )
        == 10.0
    )
