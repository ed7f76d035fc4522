"""The parts of a CycleGAN, and a training that can be interrupted."""

import sys

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.cyclegan import (
    Average,
    ImagePool,
    Images,
    Log,
    Networks,
    PatchDiscriminator,
    ResNetGenerator,
    Training,
    UNetGenerator,
    Weights,
    domains,
    generator_losses,
    initialise_,
    samples,
    to_bytes,
)
from secateur.pictures import grid, png


def networks(seed=0):
    g = [initialise_(ResNetGenerator(4, 1), seed=seed + k) for k in (0, 1)]
    d = [initialise_(PatchDiscriminator(4, 2), seed=seed + k) for k in (2, 3)]
    return Networks(*g, *d)


def pictures(seed=0, n=6):
    return torch.rand(n, 3, 20, 20, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_paper_sizes():
    """CycleGAN's generator with nine blocks has 11.378 M parameters, its discriminator 2.765 M (junyanz's implementation prints them)."""
    assert sum(p.numel() for p in ResNetGenerator(64, 9).parameters()) == 11_378_179
    assert sum(p.numel() for p in PatchDiscriminator(64).parameters()) == 2_764_737


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda affine: ResNetGenerator(4, 2, affine=affine, dropout=0.5),
        lambda affine: UNetGenerator(32, 4, affine=affine),
    ],
)
def test_generators_keep_the_size_and_can_be_narrowed(make, affine):
    model, x = initialise_(make(affine), seed=0, std=0.2).eval(), torch.rand(2, 3, 32, 32) * 2 - 1
    assert model(x).shape == x.shape
    pruned = sc.prune(model, "magnitude", granularity="channel", sparsity=0.4, example_inputs=x)
    masked = pruned.masks.apply_(model)
    torch.testing.assert_close(pruned.model(x), masked(x), rtol=1e-4, atol=1e-5)


def test_a_unet_that_cannot_be_halved_is_refused():
    with pytest.raises(sc.errors.WrongModel, match="power of two"):
        UNetGenerator(24, down=5)


def test_a_pool_gives_back_what_it_was_given_before():
    pool = ImagePool(2, seed=1)
    seen = [float(pool.exchange(torch.full((1, 1), float(k)))) for k in range(40)]
    assert seen[:2] == [0.0, 1.0]
    earlier = [k for k, value in enumerate(seen) if value != k]
    assert 8 < len(earlier) < 30
    assert all(value < k for k, value in enumerate(seen) if k in earlier)
    assert float(ImagePool(0).exchange(torch.ones(1, 1))) == 1.0


def test_the_average_forgets_its_start():
    model = nn.Linear(1, 1)
    mean = Average(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for _ in range(100):
        mean.update(model)
    assert float(mean.model.weight) == pytest.approx(1.0, abs=1e-3)


def test_losses_of_the_identity_are_those_of_the_discriminator_alone():
    """Generators that change nothing have no cycle and no identity loss; a discriminator that says 0 everywhere costs 1 a domain."""

    class Nothing(nn.Module):
        def forward(self, x):
            return x * 0

    nets = Networks(nn.Identity(), nn.Identity(), Nothing(), Nothing())
    a, b = pictures(0), pictures(1)
    terms, fake_b, _ = generator_losses(nets, a, b, Weights(teacher=3.0), (nn.Identity(), Nothing()))
    assert torch.equal(fake_b, a)
    assert {name: round(float(term), 6) for name, term in terms.items() if name != "teacher"} == {
        "adversarial": 2.0,
        "cycle": 0.0,
        "identity": 0.0,
    }
    assert float(terms["teacher"]) == pytest.approx(3 * float(b.abs().mean()))


def test_every_image_is_seen_once_an_epoch():
    marked = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 8, 8).contiguous().to(torch.uint8)
    images = Images(marked, load=8)
    seen = [int(to_bytes(images.batch(step, 2, seed=3))[k, 0, 0, 0]) for step in range(5) for k in range(2)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == [0, 1, 2, 3, 4]
    assert seen[:5] != seen[5:]


def test_folders_are_read(tmp_path):
    for part in ("trainA", "trainB"):
        (tmp_path / part).mkdir()
        for k in range(3):
            (tmp_path / part / f"{k}.png").write_bytes(png(torch.full((3, 10, 14), 40 * k, dtype=torch.uint8)))
    a, b = domains(tmp_path, "train")
    assert len(a) == len(b) == 3
    assert (a.size, a.load) == (10, 11)
    assert to_bytes(a.plain())[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert a.batch(0, 2, seed=0).shape == (2, 3, 10, 10)
    with pytest.raises(sc.errors.NeedsTask, match="no images"):
        Images(tmp_path / "trainC")


def test_a_grid_comes_back_from_its_file(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "x.png").write_bytes(png(grid([pictures(), pictures(1)])))
    with image.open(tmp_path / "x.png") as opened:
        assert opened.size == (6 * 22, 2 * 22)
        assert opened.getpixel((3, 3)) == tuple(to_bytes(pictures())[0, :, 3, 3].tolist())


@pytest.mark.parametrize("teachers", [False, True])
def test_an_interrupted_training_ends_like_an_uninterrupted_one(tmp_path, teachers):
    training = Training(steps=6, batch=2, pool=2, seed=4, lr=1e-3)

    def start():
        nets = networks()
        return training.start(nets, pictures(0), pictures(1), teachers=networks(7)[:2] if teachers else None)

    whole = start().train()
    start().train(tmp_path, every=2, until=3)
    log = Log(tmp_path / "log", every=2, pictures=2)
    resumed = start().train(tmp_path, every=100, log=log)
    assert resumed.done == 6
    for one, other in zip(whole.networks + whole.finish(), resumed.networks + resumed.finish(), strict=True):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert (tmp_path / "log" / "losses.tsv").read_text().startswith("step\tadversarial\tcycle")
    assert [file.name for file in (tmp_path / "log" / "samples").iterdir()] == ["0000006.png"]
    other = Training(steps=7).start(networks(), pictures(), pictures())
    with pytest.raises(sc.errors.BadFile, match="another folder"):
        other.train(tmp_path)


def test_training_translates_brightness():
    """Dark and bright domains: after a short training, what is made of dark images is brighter."""
    a, b = pictures(0, 8) * 0.2 - 0.6, pictures(1, 8) * 0.2 + 0.6
    nets = networks()
    run = (
        Training(steps=60, batch=2, lr=2e-3, weights=Weights(identity=0), average=0, constant=1)
        .start(nets, a, b)
        .train()
    )
    made = samples(run.finish(), a, b)
    assert float(made[1].mean()) > float(a.mean()) + 0.2
    assert float(made[4].mean()) < float(b.mean()) - 0.2


def test_tensorboard_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(sc.errors.NeedsPackage, match="secateur\\[tensorboard\\]"):
        Log(tmp_path, tensorboard=True)
