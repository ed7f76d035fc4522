"""`plan` against sorting everything in Python: every granularity with every allocation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from secateur.facts import LayerFacts
from secateur.names import allocation_of, granularity_of
from secateur.planning import plan
from secateur.scores import Scores

LAYOUTS = {
    "": LayerFacts(),
    "swapped": LayerFacts(out_dim=1, in_dim=0),
    "transposed": LayerFacts(out_dim=1, in_dim=0, groups=2, out_in_groups=True),
    "vector": LayerFacts(in_dim=None),
}
SHAPES = {
    "": [(4, 8), (8, 4, 3), (4, 4, 2, 2), (1, 4), (4, 8, 1, 2, 1), (0, 4), (12, 4)],
    "swapped": [(8, 4), (4, 8, 3), (4, 12, 2, 2)],
    "transposed": [(8, 2), (8, 2, 3), (16, 4, 1, 2)],
    "vector": [(4,), (1,), (9,), ()],
}
GRANULARITIES = [
    "unstructured",
    "row",
    "filter",
    "kernel",
    "input_channel",
    "shape",
    "block:4x1",
    "block:2x2",
    "1x",
    "2:4",
    "1:2",
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8]


@st.composite
def tensors(draw, granularity):
    """A scored tensor, its layout, and maybe odd strides. Small whole numbers: sums are exact and ties abound."""
    divides = granularity[0].isdigit() or granularity.startswith("block")
    layout = draw(st.sampled_from(["", "swapped", "transposed"] if divides else list(LAYOUTS)))
    hollow = granularity in ("input_channel", "shape", "kernel")  # their units would hold no weight at all
    fits = [
        s for s in SHAPES[layout] if not (hollow and 0 in s) and not (granularity.startswith("block") and 1 in s[:1])
    ]
    shape = draw(st.sampled_from(fits))
    size = torch.Size(shape).numel()
    dtype = draw(st.sampled_from(DTYPES))
    numbers = st.integers(-3, 9)
    if dtype.is_floating_point and granularity in ("unstructured", "row", "2:4", "1:2"):
        special = [float("inf"), -0.0, 0.0, 0.5, 2**-14, -1.5, 6e4]
        numbers = numbers | st.sampled_from(special)
    values = torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size)), dtype=dtype).reshape(shape)
    if values.dim() > 1 and draw(st.booleans()):
        values = values.transpose(0, 1).contiguous().transpose(0, 1)
    return values, layout


def expected_counts(scope, tables, shapes, sparsity, min_kept):
    total = sum(len(table) for table in tables.values())
    keep = round((1 - sparsity) * total)
    if scope == "global":
        return oracles.counts_globally(tables, keep, min_kept)
    if scope == "lamp":
        return oracles.counts_globally({n: oracles.lamp(t) for n, t in tables.items()}, keep, min_kept)
    floors = {name: min(min_kept, len(table)) for name, table in tables.items()}
    return {n: max(floors[n], round((1 - sparsity) * len(t))) for n, t in tables.items()}


@settings(max_examples=30)
@pytest.mark.parametrize("scope", ["global", "layer", "lamp"])
@pytest.mark.parametrize("granularity", [g for g in GRANULARITIES if g != "1x" and not g[0].isdigit()])
@given(data=st.data())
def test_plan_is_sorting_everything(granularity, scope, data):
    drawn = data.draw(st.lists(tensors(granularity), min_size=1, max_size=3))
    if scope == "lamp":  # whole numbers only, so that the oracle's fractions are exact
        drawn = [(values.nan_to_num(posinf=9).round(), layout) for values, layout in drawn]
    sparsity = data.draw(st.sampled_from([0, 0.1, 0.25, 0.5, 0.7, 0.9, 0.999]) | st.floats(0, 0.999))
    values = {f"layer{number}": value for number, (value, _) in enumerate(drawn)}
    layouts = {name: layout for name, (_, layout) in zip(values, drawn, strict=True)}
    scores = Scores(values, facts={name: LAYOUTS[layout] for name, layout in layouts.items()})
    tables = {n: oracles.units_of(v, granularity, layouts[n], LAYOUTS[layouts[n]].groups) for n, v in values.items()}
    units = {name: scored for name, (_, scored) in tables.items()}
    keep = round((1 - sparsity) * sum(map(len, units.values())))
    min_kept = data.draw(st.integers(0, 3))
    if sum(min(min_kept, len(table)) for table in units.values()) > keep:
        min_kept = 0
    counts = expected_counts(scope, units, values, sparsity, min_kept)
    masks = plan(scores, granularity_of(granularity), allocation_of(scope, sparsity, min_kept=min_kept))
    for name, (members, scored) in tables.items():
        expected = oracles.mask_of(values[name], members, oracles.select(scored, counts[name]))
        assert masks[name].shape == values[name].shape
        assert masks[name].reshape(-1).tolist() == expected, name


@settings(max_examples=40)
@given(data=st.data(), granularity=st.sampled_from(["2:4", "1:4", "3:4", "1:2", "2:2x"]))
def test_n_of_m_keeps_the_n_best_of_every_m_inputs(data, granularity):
    granularity = granularity.replace("2:2x", "1:2")
    values, layout = data.draw(tensors(granularity))
    scores = Scores({"w": values}, facts={"w": LAYOUTS[layout]})
    mask = plan(scores, granularity_of(granularity), None)["w"]
    n = int(granularity[0])
    members, scored = oracles.units_of(values, granularity, layout, LAYOUTS[layout].groups)
    groups = {group for group, _ in members}
    assert mask.reshape(-1).tolist() == oracles.mask_of(values, members, oracles.select(scored, n * len(groups)))
    flat = mask.reshape(-1)
    for group in groups:
        assert sum(bool(flat[i]) for (g, _), flats in members.items() if g == group for i in flats) == n


@settings(max_examples=100)
@given(
    shapes=st.lists(
        st.sampled_from([(4, 8), (300, 100), (64, 3, 3, 3), (10,), (2, 2), (0, 4), (512, 8)]), min_size=1, max_size=5
    ),
    sparsity=st.floats(0, 0.99),
    min_kept=st.integers(0, 20),
)
def test_erk_is_the_formula_with_exact_total(shapes, sparsity, min_kept):
    values = {f"l{number}": torch.zeros(shape) for number, shape in enumerate(shapes)}
    scores = Scores(values)
    units = granularity_of("unstructured").pool(scores)
    keep, limits = round((1 - sparsity) * units.total), {n: v.numel() for n, v in values.items()}
    if sum(min(min_kept, limit) for limit in limits.values()) > keep:
        min_kept = 0
    counts = allocation_of("erk", sparsity, min_kept=min_kept)(units)
    assert sum(counts.values()) == keep
    shares = {n: oracles.erk_share(tuple(v.shape), v.numel()) for n, v in values.items()}
    amounts = oracles.water_level(shares, keep, limits, {n: min(min_kept, limits[n]) for n in limits})
    for name, amount in amounts.items():
        assert min(min_kept, limits[name]) <= counts[name] <= limits[name]
        assert abs(counts[name] - amount) < 1 + 1e-6, name


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 70_000), min_size=1, max_size=3),
    levels=st.sampled_from([0, 3, 50, 10**6]),
    sparsity=st.floats(0, 0.999),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_many_scores_rank_as_torch_sorts_them(seed, sizes, levels, sparsity, dtype):
    """Enough scores to leave the path on which everything is the sample; ``levels`` makes ties."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for number, size in enumerate(sizes):
        drawn = torch.randn(size, generator=generator, dtype=torch.float64)
        values[str(number)] = ((drawn * levels).round() / levels if levels else drawn).to(dtype)
    together = torch.cat(list(values.values()))
    keep = round((1 - sparsity) * together.numel())
    order = together.double().argsort(descending=True, stable=True)[:keep]
    expected = torch.zeros(together.numel(), dtype=torch.bool)
    expected[order] = True
    masks = plan(Scores(values), granularity_of("unstructured"), allocation_of("global", sparsity))
    assert torch.equal(torch.cat([masks[name] for name in values]), expected)


@settings(max_examples=60)
@given(
    data=st.data(),
    granularity=st.sampled_from([g for g in GRANULARITIES if g != "1x"]),
    scope=st.sampled_from(["global", "layer", "erk", "lamp"]),
    piece=st.integers(1, 40),
    sparsity=st.floats(0, 0.99),
)
def test_pieces_of_any_size_give_the_same_masks(data, granularity, scope, piece, sparsity):
    values, layout = data.draw(tensors(granularity))
    scores = Scores({"w": values}, facts={"w": LAYOUTS[layout]})
    allocation = None if granularity[0].isdigit() else allocation_of(scope, sparsity)
    whole = plan(scores, granularity_of(granularity), allocation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secateur.units.PIECE", piece)
        assert plan(scores, granularity_of(granularity), allocation) == whole
