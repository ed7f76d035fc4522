"""Recipes: strict, complete in their complaints, and the same again after a trip through TOML."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateur.errors import BadRecipe, SecateurError, WrongModel
from secateur.recipe import Recipe, example_inputs_of, load, parse, run

SMALLEST = '[model]\npath = "nets:make"\n[prune]\nsparsity = 0.5\n'


def problems(text: str) -> dict[str, str]:
    with pytest.raises(BadRecipe) as caught:
        parse(text)
    lines = str(caught.value).splitlines()
    return dict(line.split(": ", 1) for line in lines)


# --- one clear line each -------------------------------------------------------------------------------------------------


def test_all_mistakes_come_at_once_each_with_its_path():
    found = problems(
        """
        surprise = 1
        [model]
        path = "nets.make"
        weight = "w.pt"
        example_inputs = ["1x3x0", "1x3:float7"]
        [task]
        loss = 3
        [prune]
        method = "magnitud"
        granularity = "block:4"
        sparsity = 90
        scope = "golbal"
        min_kept = -1
        seed = 1.5
        include_bias = "yes"
        ignore = ["head", 3]
        [prune.overrides]
        conv1 = "0.5"
        conv2 = 2
        [train]
        epochs = 0
        [train.schedule]
        name = "polynomial"
        begin_step = 100
        end_step = 50
        freqency = 3
        """
    )
    assert set(found) == {
        "surprise",
        "model.path",
        "model.weight",
        "model.example_inputs.0",
        "model.example_inputs.1",
        "task.loss",
        "prune.method",
        "prune.granularity",
        "prune.sparsity",
        "prune.scope",
        "prune.min_kept",
        "prune.seed",
        "prune.include_bias",
        "prune.ignore.1",
        "prune.overrides.conv1",
        "prune.overrides.conv2",
        "train.batches",
        "train.epochs",
        "train.schedule",
        "train.schedule.freqency",
    }
    assert "did you mean 'weights'?" in found["model.weight"]
    assert "did you mean 'magnitude'?" in found["prune.method"]
    assert "did you mean 'frequency'?" in found["train.schedule.freqency"]
    assert "for 90 % write 0.9" in found["prune.sparsity"]
    assert found["prune.include_bias"] == "must be true or false, not the text 'yes'"
    assert found["prune.min_kept"] == "must be at least 0, not -1"


@pytest.mark.parametrize(
    ("line", "key", "says"),
    [
        ('sparsity = "0.9"', "prune.sparsity", "must be a number, not the text '0.9'"),
        ("sparsity = true", "prune.sparsity", "must be a number, not true"),
        ("sparsity = nan", "prune.sparsity", "finite"),
        ("sparsity = 1.0", "prune.sparsity", "[0, 1)"),
        ("sparsity = -0.1", "prune.sparsity", "[0, 1)"),
        ("", "prune.sparsity", "missing"),
        ('granularity = "2:4"\nsparsity = 0.75', "prune.sparsity", "removes 0.5"),
        ("sparsity = 0.5\noptions.p = 3", "prune.options", "p is 1"),
        ("sparsity = 0.5\noptions.p = 1.0", "prune.options.p", "must be a whole number"),
        ("sparsity = 0.5\noptions.q = 1", "prune.options.q", "unknown key"),
        ('sparsity = 0.5\nmethod = "movement"', "train", "needs this table"),
        ("sparsity = 0.5\nmin_kept = 1\n[task]\nloss = 'lossy'", "task.loss", "package.module:name"),
    ],
)
def test_one_mistake(line, key, says):
    found = problems(f'[model]\npath = "nets:make"\n[prune]\n{line}\n')
    assert list(found) == [key]
    assert says in found[key]


def test_training_needs_a_loss():
    found = problems(SMALLEST + '[train]\nbatches = "nets:train"\n[train.schedule]\nbegin_step = 0\nend_step = 5\n')
    assert "needs a loss" in found["train"]


def test_what_is_not_toml_says_where():
    with pytest.raises(BadRecipe, match=r"not TOML: .*line 2"):
        parse("[model]\npath = \n")


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(BadRecipe, match="No such file"):
        load(tmp_path / "nowhere.toml")


def test_what_a_recipe_points_at_is_looked_up_before_anything_runs(tmp_path, monkeypatch):
    (tmp_path / "mine_a.py").write_text("def make(): raise AssertionError('built too early')\n")
    (tmp_path / "mine_b.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        """
        [model]
        path = "mine_a:mak"
        weights = "nowhere.pt"
        [task]
        loss = "mine_b:loss"
        evaluate = "nowhere_at_all:score"
        [prune]
        sparsity = 2
        [output]
        html = "no/such/folder/page.html"
        """
    )
    with pytest.raises(BadRecipe) as caught:
        load(recipe)
    found = dict(line.split(": ", 1) for line in str(caught.value).splitlines())
    assert set(found) == {"model.path", "model.weights", "task.loss", "task.evaluate", "prune.sparsity", "output.html"}
    assert "ZeroDivisionError" in found["task.loss"]
    recipe.write_text(SMALLEST.replace("nets:make", "mine_a:make"))
    assert load(recipe).model.path == "mine_a:make"


# --- recipe -> TOML -> recipe ---------------------------------------------------------------------------------------------

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
dotted_paths = st.builds("{}.{}:{}".format, names, names, names)
fractions = st.floats(0, 1, exclude_max=True)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
inputs = st.builds(
    lambda sizes, dtype: "x".join(map(str, sizes)) + dtype,
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
    st.sampled_from(["", ":int64", ":bfloat16", ":bool"]),
)
scalars = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), texts
)


def table(required, optional):
    return st.fixed_dictionaries(required, optional=optional)


prune_tables = table(
    {"sparsity": fractions},
    {
        "method": st.sampled_from(["magnitude", "random", "taylor", "snip"]) | dotted_paths,
        "granularity": st.sampled_from(["unstructured", "filter", "kernel", "row", "block:4x1"]),
        "scope": st.sampled_from(["global", "layer", "erk", "lamp"]),
        "overrides": st.dictionaries(texts, fractions, max_size=3),
        "ignore": st.lists(texts, max_size=3),
        "min_kept": st.integers(0, 9),
        "include_bias": st.booleans(),
        "recalibrate": st.booleans(),
        "seed": st.integers(0, 2**63 - 1),
    },
)
schedules = st.one_of(
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["polynomial", "linear"]),
            "begin_step": st.integers(0, 50),
            "end_step": st.integers(51, 10**9),
        },
        optional={"frequency": st.integers(1, 1000), "initial_sparsity": fractions},
    ),
    st.fixed_dictionaries({"name": st.just("constant")}, optional={"begin_step": st.integers(0, 50)}),
)
train_tables = table(
    {"batches": dotted_paths, "schedule": schedules},
    {
        "epochs": st.integers(1, 99),
        "optimizer": dotted_paths,
        "optimizer_options": st.dictionaries(names, scalars | st.lists(scalars, max_size=3), max_size=3),
        "seed": st.integers(0, 99),
    },
)
recipes = table(
    {
        "model": table({"path": dotted_paths}, {"weights": texts, "example_inputs": st.lists(inputs, max_size=3)}),
        "prune": prune_tables,
    },
    {
        "task": st.fixed_dictionaries(
            {"loss": dotted_paths}, optional={"batches": dotted_paths, "evaluate": dotted_paths}
        ),
        "output": table({}, {"model": texts, "report": texts, "html": texts}),
    },
).flatmap(
    lambda data: (
        st.just(data) | train_tables.map(lambda train: data | {"train": train}) if "task" in data else st.just(data)
    )
)


@given(recipes)
def test_recipe_to_toml_to_recipe_is_the_identity(data):
    recipe = Recipe.model_validate(data)
    text = recipe.to_toml()
    again = parse(text)
    assert again == recipe
    assert again.to_toml() == text
    assert repr(again) == repr(recipe)  # 1 == 1.0 == True, but their words differ


# --- inputs -----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from(["float32", "int64", "bool", "float16"]))
def test_inputs_have_the_shape_and_dtype_that_was_written(sizes, dtype):
    (made,) = example_inputs_of(["x".join(map(str, sizes)) + f":{dtype}"])
    assert (list(made.shape), made.dtype) == (sizes, getattr(torch, dtype))


def test_inputs_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    one, two = example_inputs_of(["2x3"]), example_inputs_of(["2x3"])
    assert torch.equal(one[0], two[0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("text", ["", "1x", "x3", "3x0", "1x2:float7", "-1x2", "1 x 2", "1x2:Tensor"])
def test_what_is_no_input_is_refused(text):
    with pytest.raises(BadRecipe):
        example_inputs_of([text])


# --- running ----------------------------------------------------------------------------------------------------------------

NETS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
y = (x.sum(1) > 0).long()
batches = [(x[:16], y[:16]), (x[16:], y[16:])]

def stream():
    yield from batches

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def evaluate(model):
    return (model(x).argmax(1) == y).float().mean().item()

not_a_model = 3

from dataclasses import dataclass
import secateur as sc

@dataclass(frozen=True, kw_only=True)
class Power:
    p: float = 1.0
    def __call__(self, model, targets, task=None):
        return sc.Scores({name: model.get_parameter(name).detach().abs() ** self.p for name in targets})

ready = Power()

def unseeded():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    (tmp_path / "recipe_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "recipe_nets"
    sys.modules.pop("recipe_nets", None)


BASE = """
[model]
path = "recipe_nets:make"
example_inputs = ["1x6"]
[task]
batches = "recipe_nets:batches"
loss = "recipe_nets:loss"
evaluate = "recipe_nets:evaluate"
[prune]
"""


@pytest.mark.parametrize(
    "extra", ["", 'method = "taylor"\n', 'method = "random"\nseed = 3\n', "recalibrate = true\n", "options.p = 2\n"]
)
def test_one_shot(nets, extra):
    pruned = run(parse(BASE + "sparsity = 0.5\n" + extra))
    assert (pruned.masks.kept, pruned.masks.total) == (36, 72)  # 6*8 + 8*3 weights
    assert pruned.report.after.score is not None
    assert ("batch-norm" in " ".join(pruned.report.notes)) == ("recalibrate" in extra)


def test_single_weights_within_an_energy_budget(nets):
    pruned = run(parse(BASE + 'budget = "energy:60%"\n'))
    assert 0 < pruned.masks.kept < pruned.masks.total
    assert "energy were asked for" in pruned.report.notes[0]


@pytest.mark.parametrize("batches", ["batches", "stream"])
@pytest.mark.parametrize("method", ["magnitude", "movement"])
def test_gradual_reaches_the_sparsity_and_tells_of_progress(nets, batches, method):
    told = []
    text = BASE + (
        f'method = "{method}"\nsparsity = 0.75\n[train]\nbatches = "recipe_nets:{batches}"\nepochs = 5\n'
        'optimizer = "torch.optim:SGD"\noptimizer_options = {lr = 0.1, momentum = 0.9}\n'
        "[train.schedule]\nbegin_step = 1\nend_step = 8\nfrequency = 2\n"
    )
    pruned = run(parse(text), lambda *now: told.append(now))
    assert pruned.masks.kept == 18
    assert [done for _, done, _ in told] == list(range(1, 11))
    assert told[-1] == ("training, 75.0% removed", 10, 10 if batches == "batches" else None)
    assert not pruned.model.training


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ('method = "layer_obs"\nsparsity = 0.5\noptions = {solver = "split", targets = "dense"}\n', 0.5),
        ('method = "layer_obs"\nbudget = "params:50%"\n', 0.36),  # biases and norms count and stay
        ('method = "obs"\nsparsity = 0.5\noptions.curvature = "cross_entropy"\n', 0.5),
        ('method = "obs"\noptions.most_rise = 1e9\noptions.each = 20\n', 0.0),
        ('method = "block_fisher"\nsparsity = 0.5\noptions = {stages = 2, samples = 64}\n', 0.5),
    ],
)
def test_methods_of_their_own_run_in_one_shot_and_tell_of_progress(nets, lines, kept):
    told, recipe = [], parse(BASE + lines)
    assert parse(recipe.to_toml()) == recipe
    pruned = run(recipe, lambda *now: told.append(now))
    assert pruned.masks.kept / pruned.masks.total == pytest.approx(kept, abs=0.05)
    if recipe.prune.method != "block_fisher":
        assert told
        assert told[-1][1] == told[-1][2]


def test_a_method_of_its_own_is_refused_where_it_does_not_fit():
    def why(lines):
        return problems('[model]\npath = "nets:make"\nexample_inputs = "1x8"\n[prune]\n' + lines)

    assert (
        "keeps all widths" in why('method = "layer_obs"\ngranularity = "channel"\nsparsity = 0.5')["prune.granularity"]
    )
    assert "granularity = 'channel'" in why('method = "data_free"\nsparsity = 0.5')["prune.granularity"]
    assert "single weights" in why('method = "obs"\ngranularity = "2:4"\nsparsity = 0.5')["prune.granularity"]
    assert "missing" in why('method = "layer_obs"')["prune.sparsity"]
    found = why('method = "layer_obs"\nsparsity = 0.5\noptions = {solvr = "split", tune = 1.5, damping = "huge"}')
    assert {"prune.options.solvr", "prune.options.tune"} <= set(found)
    assert "not known" in why('method = "layer_obs"\nsparsity = 0.5\noptions.damping = "huge"')["prune.options"]
    reserved = why('method = "layer_obs"\nsparsity = 0.5\noptions = {ignore = "x", seed = 3, solver = 1}')
    assert {"prune.options.ignore", "prune.options.seed", "prune.options.solver"} <= set(reserved)
    assert "allocation" not in reserved["prune.options.ignore"]
    assert "no biases" in why('method = "layer_obs"\nsparsity = 0.5\ninclude_bias = true')["prune.include_bias"]
    assert "one sparsity" in why('method = "block_fisher"\ngranularity = "2:4"\noptions.stages = 3')["prune.options"]
    assert "keeps no such budget" in why('method = "obs"\nbudget = "macs:40%"')["prune.budget"]
    assert "how much leaves" in why('method = "obs"')["prune.options"]
    assert "not known" in why('method = "obs"\nsparsity = 0.5\noptions.curvature = "foo"')["prune.options"]
    assert set(why('method = "obs"\noptions.floor = 0.5')) == {"task.batches", "task.evaluate"}
    assert set(why('method = "block_fisher"\nsparsity = 0.5')) == {"task.batches", "task.loss"}
    trained = 'method = "obs"\nsparsity = 0.5\n[train]\nbatches = "a:b"\n[train.schedule]\nbegin_step = 0\nend_step = 3\n[task]\nloss = "a:b"'
    assert "one shot" in why(trained)["train"]
    assert "layer_obs" in why('method = "gdp"\nsparsity = 0.5')["prune.method"]


def test_gradual_is_the_same_twice_and_leaves_random_state_alone(nets):
    text = BASE + (
        'sparsity = 0.5\n[train]\nbatches = "recipe_nets:batches"\nepochs = 2\n[train.schedule]\nbegin_step = 0\nend_step = 3\n'
    )
    one, two = run(parse(text)).model, run(parse(text)).model
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_criterion_of_the_users_with_options(nets):
    ours = run(parse(BASE + "sparsity = 0.5\noptions.p = 2\n"))
    theirs = run(parse(BASE + 'sparsity = 0.5\nmethod = "recipe_nets:Power"\noptions.p = 2.0\n'))
    assert ours.masks == theirs.masks
    with pytest.raises(BadRecipe, match="takes no options"):
        run(parse(BASE + 'sparsity = 0.5\nmethod = "recipe_nets:ready"\noptions.p = 2.0\n'))
    with pytest.raises(SecateurError, match="no option 'q'"):
        run(parse(BASE + 'sparsity = 0.5\nmethod = "recipe_nets:Power"\noptions.q = 2.0\n'))


def test_initial_weights_follow_the_seed(nets):
    text = BASE.replace(":make", ":unseeded") + "sparsity = 0.5\nseed = "
    before = torch.get_rng_state()
    one, two, three = (run(parse(text + seed)).model[0].weight for seed in ("1", "1", "2"))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(before, torch.get_rng_state())


def test_a_path_that_gives_no_model(nets):
    with pytest.raises(BadRecipe, match="gives int"):
        run(parse(BASE.replace(":make", ":not_a_model") + "sparsity = 0.5"))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_are_loaded(nets, tmp_path, suffix):
    from safetensors.torch import save_file

    torch.manual_seed(7)
    trained = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    path = tmp_path / f"weights.{suffix}"
    (torch.save if suffix == "pt" else save_file)(trained.state_dict(), path)
    text = BASE.replace("example_inputs", f"weights = '{path}'\nexample_inputs") + "sparsity = 0.0"
    pruned = run(parse(text))
    assert torch.equal(pruned.model[0].weight, trained[0].weight)


def test_weights_of_another_model_are_refused_in_one_line(nets, tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    text = BASE.replace("example_inputs", f"weights = '{tmp_path / 'other.pt'}'\nexample_inputs") + "sparsity = 0.5"
    with pytest.raises((BadRecipe, WrongModel), match="do not fit Sequential"):
        run(parse(text))


# --- channels ----------------------------------------------------------------------------------------------------------------

CHANNELS = '[model]\npath = "nets:make"\nexample_inputs = "1x6"\n[prune]\nsparsity = 0.5\ngranularity = "channel"\n'


def test_channels_have_keys_of_their_own_that_survive_toml():
    recipe = parse(CHANNELS + 'round_to = 8\nheads = "inside"\nfallback = "graph"\n')
    assert (recipe.prune.round_to, recipe.prune.heads, recipe.prune.fallback) == (8, "inside", "graph")
    assert parse(recipe.to_toml()) == recipe


def test_channels_need_an_example_input():
    found = problems(CHANNELS.replace('example_inputs = "1x6"\n', ""))
    assert list(found) == ["prune.granularity"]
    assert "add example_inputs" in found["prune.granularity"]


def test_what_only_channels_have_is_refused_elsewhere():
    found = problems(SMALLEST + 'round_to = 8\nheads = "inside"\n')
    assert set(found) == {"prune.round_to", "prune.heads"}
    found = problems(CHANNELS + 'round_to = 0\nheads = "half"\n')
    assert set(found) == {"prune.round_to", "prune.heads"}


def test_channels_and_training_do_not_go_together():
    train = '[task]\nloss = "nets:loss"\n[train]\nbatches = "nets:batches"\n[train.schedule]\nname = "constant"\n'
    assert "train the narrowed network afterwards" in problems(CHANNELS + train)["train"]


def test_budgets_of_whole_channels_and_of_single_weights():
    assert (
        "granularity = 'channel'" in problems(SMALLEST.replace("sparsity = 0.5", 'budget = "macs:50%"'))["prune.budget"]
    )
    found = problems(SMALLEST.replace("sparsity = 0.5", 'budget = "energy:50%"'))
    assert "what 'energy:50%' leaves: add example_inputs" in found["prune.budget"]
    train = '[task]\nloss = "nets:loss"\n[train]\nbatches = "nets:batches"\n[train.schedule]\nname = "constant"\n'
    assert (
        "instead of a budget" in problems(BASE + 'budget = "energy:60%"\n' + train[train.index("[train]") :])["train"]
    )


def test_the_time_of_the_engine_is_for_latencies():
    timed = SMALLEST.replace("sparsity = 0.5", 'budget = "latency:50%"')
    assert "runtime = 'secateur'" in problems(timed)["prune.budget"]
    timed = timed.replace('make"', 'make"\nexample_inputs = "1x6"') + 'runtime = "secateur"\n'
    assert parse(timed).prune.runtime == "secateur"
    assert "is a clock" in problems(timed.replace("latency", "energy"))["prune.budget"]
    assert "missing" in problems(timed.replace('budget = "latency:50%"', "sparsity = 0.5"))["prune.budget"]
