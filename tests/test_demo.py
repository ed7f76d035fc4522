"""The demonstration: its claims are checked, not only printed."""

import pytest
import torch

from secateur.demo import Batches, DigitsNet, digits_task, fit, run_demo

pytest.importorskip("sklearn", reason="the demonstration uses scikit-learn's digits")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    told = []
    found = run_demo(tmp_path_factory.mktemp("demo") / "new", epochs=6, say=lambda *now: told.append(now))
    return found, told


def test_what_it_shows(demo):
    found, _ = demo
    assert found.dense_score > 95
    assert found.gradual.report.after.score > found.dense_score - 4  # at 90 %, after half the usual training
    assert found.gradual.masks.kept == round(0.1 * found.gradual.masks.total)
    assert found.gradual.report.after.score > found.gradual.report.controls["random weights, trained alike"]
    assert found.zeros_held
    assert found.loaded_equal


def test_channels_leave_for_real_and_the_score_stays_near(demo):
    found, _ = demo
    before, after = found.narrow.report.before, found.narrow.report.after
    assert after.macs < before.macs / 5
    assert after.params < before.params / 5
    assert after.score > found.dense_score - 5


def test_magnitude_beats_the_random_control_from_half_on(demo):
    found, _ = demo
    assert [row.sparsity for row in found.rows] == [0.5, 0.7, 0.8, 0.9, 0.95]
    assert all(row.magnitude > row.random + 10 for row in found.rows)


def test_the_file_is_small_and_the_page_needs_nothing_else(demo):
    found, _ = demo
    assert found.model_file.stat().st_size < found.gradual.report.before.dense_bytes / 4
    page = found.page.read_text()
    assert "<html" in page.lower()
    assert 'src="http' not in page
    assert 'href="http' not in page.replace('xmlns:xlink="http', "")


def test_progress_is_told_to_the_end(demo):
    _, told = demo
    last = {text.partition(",")[0]: (done, total) for text, done, total in told if "alone" not in text}
    assert len(last) == 5
    assert all(done == total for done, total in last.values())


def test_batches_are_shuffled_anew_and_the_same_for_a_seed():
    images, labels = torch.arange(10.0).view(10, 1), torch.arange(10)
    one, two = Batches(images, labels, size=4), Batches(images, labels, size=4)
    first, second = torch.cat([y for _, y in one]), torch.cat([y for _, y in one])
    assert torch.equal(first, torch.cat([y for _, y in two]))
    assert not torch.equal(first, second)
    assert sorted(second.tolist()) == list(range(10))
    assert len(one) == len(list(one)) == 3


def test_the_net_and_its_parameters_by_hand():
    # 32*9 + 32,  64*32*9 + 64,  1024*64 + 64,  64*10 + 10
    assert sum(p.numel() for p in DigitsNet().parameters()) == 320 + 18_496 + 65_600 + 650 == 85_066


def test_fit_ends_in_eval_mode_and_learns():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, task = DigitsNet(), digits_task()
        fit(model, task, epochs=2)
    assert not model.training
    assert task.evaluate(model) > 70
