"""Numbers on real data that must not move. Skipped where ``../shared/data`` is absent; a few seconds in all."""

import pytest
import torch
from benchmarks import anchor, imdb
from benchmarks.data import DATA, Split, load_cifar, load_mnist
from benchmarks.nets import load_resnet, make_lenet_300_100, make_mlp
from benchmarks.training import accuracy, train

import secateur as sc

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"the data sets are not at {DATA}"),
]


@pytest.fixture(scope="module")
def mnist() -> Split:
    return load_mnist()


@pytest.fixture(scope="module")
def mlp(mnist: Split) -> torch.nn.Module:
    torch.manual_seed(0)
    few = Split(mnist.x_train[:12_800], mnist.y_train[:12_800], mnist.x_test, mnist.y_test)
    return train(make_mlp(), few, epochs=1, seed=0)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
def test_magnitude_equals_sorting_everything_in_numpy(
    mlp: torch.nn.Module, mnist: Split, scope: str, tied: bool
) -> None:
    net = anchor.with_ties(mlp) if tied else mlp
    kept = [anchor.compare_once(net, mnist, scope, sparsity)["kept"] for sparsity in anchor.SPARSITIES]
    assert kept == [16180, 12944, 9708, 6472, 3236, 1618, 647]  # round((1 - s) * 32,360), by hand


def test_checkpoints_with_wrapped_names_are_read(mlp: torch.nn.Module, tmp_path) -> None:
    names = ("fc1", "fc2", "fc3")
    wrapped = {f"module.{name}._layer.weight": p.detach() for name, p in zip(names, mlp.parameters(), strict=True)}
    torch.save({"epoch": 10, "model_state_dict": wrapped}, tmp_path / "old.pt")
    again = anchor.load_mlp(tmp_path / "old.pt")
    assert all(torch.equal(a, b) for a, b in zip(mlp.parameters(), again.parameters(), strict=True))


def test_published_lenet_keeps_its_error_and_loses_it_as_measured_before() -> None:
    """1.61 % error dense; 31.1 % by magnitude at the 5/20/70 % that layer-wise OBS keeps of its three layers."""
    data = load_mnist(mean=0.0, std=1.0)
    state = torch.load(DATA / "models" / "lenet300_100_mnist.pt", weights_only=True)
    net = make_lenet_300_100()
    net.load_state_dict({ours: state[theirs] for ours, theirs in zip(net.state_dict(), state, strict=True)})
    assert accuracy(net, data.x_test, data.y_test) == pytest.approx(98.39)
    pruned = sc.prune(net, sparsity=0.9, scope="layer", overrides={"1": 0.95, "3": 0.8, "5": 0.3})
    assert pruned.masks.kept == 11_760 + 6_000 + 700
    assert 100 - accuracy(pruned.model, data.x_test, data.y_test) == pytest.approx(31.1, abs=0.05)


def test_pretrained_resnet_at_half_its_weights() -> None:
    data = load_cifar()
    net = load_resnet(str(DATA / "models" / "resnet20_cifar10.pt"), 3)
    assert accuracy(net, data.x_test, data.y_test, batch=100) == pytest.approx(91.5)
    pruned = sc.prune(net, sparsity=0.5, ignore=["linear"])
    assert (pruned.masks.total, pruned.masks.kept) == (267_696, 133_848)
    assert accuracy(pruned.model, data.x_test, data.y_test, batch=100) == pytest.approx(90.6, abs=0.15)


def test_the_schedule_of_the_toolkits_imdb_example_is_refused() -> None:
    assert "ends at step 3000, but training stops after 2346 steps" in imdb.trap()
