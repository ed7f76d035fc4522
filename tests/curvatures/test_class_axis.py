"""Outputs with classes at many places: tokens of a tagger, pixels of a segmentation. Curvature is held against exact Hessians."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.criteria.obd import Obd
from secateur.curvatures.jacobians import curvature_rows
from secateur.errors import BadSparsity, NeedsTask, WrongModel
from secateur.targets import find_targets


def tagger():
    torch.manual_seed(0)
    return nn.Linear(3, 2).double(), torch.randn(40, 7, 3).double(), -1


def segmenter(pixels=(3, 2)):
    torch.manual_seed(0)
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[len(pixels)]
    return kind(2, 3, 1).double(), torch.randn(10, 2, *pixels).double(), 1


def hessian(model, x, axis):
    """Of the cross-entropy summed over places, the mean over samples, for labels as the model deals them out; a diagonal."""
    own = {name: p.detach() for name, p in model.named_parameters()}
    chances = model(x).detach().softmax(axis)

    def loss(parameters):
        out = torch.func.functional_call(model, parameters, (x,))
        return -(chances * out.log_softmax(axis)).sum() / len(x)

    found = torch.func.jacrev(torch.func.jacrev(loss))(own)["weight"]["weight"]
    size = model.weight.numel()
    return found.reshape(size, size)


@pytest.mark.parametrize("case", [tagger, segmenter, lambda: segmenter((5,))])
def test_a_softmax_at_every_place_gives_the_exact_hessian(case):
    model, x, axis = case()
    wanted = hessian(model, x, axis)
    ((rows, samples),) = curvature_rows(model, ["weight"], sc.Task([x]), "cross_entropy", who="a test", classes=axis)
    torch.testing.assert_close(rows.t() @ rows / samples, wanted)
    scores = Obd(diagonal="cross_entropy", classes=axis)(model, find_targets(model), sc.Task([x])).values["weight"]
    torch.testing.assert_close(scores.flatten(), wanted.diagonal() * model.weight.detach().flatten().square() / 2)


def test_drawn_labels_give_it_on_average():
    model, x, axis = tagger()
    scores = Obd(diagonal="sampled", classes=axis)(model, find_targets(model), sc.Task([x] * 200)).values["weight"]
    wanted = hessian(model, x, axis).diagonal() * model.weight.detach().flatten().square() / 2
    torch.testing.assert_close(scores.flatten(), wanted, rtol=0.1, atol=1e-3)


def test_pixels_follow_torch_without_being_told():
    model, x, _ = segmenter()
    told, untold = (
        Obd(diagonal="cross_entropy", classes=c)(model, find_targets(model), sc.Task([x])).values["weight"]
        for c in (1, None)
    )
    assert torch.equal(told, untold)


def test_one_place_is_a_flat_output():
    """[N, C, 1, 1] and [N, 1, C] are what [N, C] is."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 3, 4), torch.randn(6, 2, 4, 4)
    whole, flat = (
        next(curvature_rows(m, ["0.weight"], sc.Task([x]), "cross_entropy", who="a test"))[0]
        for m in (nn.Sequential(conv), nn.Sequential(conv, nn.Flatten()))
    )
    assert torch.equal(whole, flat)
    line = nn.Sequential(conv, nn.Flatten(), nn.Unflatten(1, (1, 3)))
    assert torch.equal(next(curvature_rows(line, ["0.weight"], sc.Task([x]), "cross_entropy", who="a test"))[0], flat)


@pytest.mark.parametrize("method", ["obd", "obs", "block_fisher"])
@pytest.mark.parametrize("kind", ["cross_entropy", "sampled"])
def test_what_could_be_either_is_asked_for(method, kind):
    model, x, axis = tagger()
    how = {"diagonal" if method == "obd" else "curvature": kind, "sparsity": 0.5, "task": sc.Task([x])}
    with pytest.raises(WrongModel, match=r"\[N, 7, 2\] does not say where they are.*classes=-1 \(2 classes\)"):
        sc.prune(model, method, **how)
    assert sc.prune(model, method, classes=axis, **how).masks.sparsity == 0.5


def test_axes_that_make_no_sense():
    model, x, _ = tagger()
    how = {"sparsity": 0.5, "task": sc.Task([x]), "curvature": "cross_entropy"}
    for wrong in (0, 1.5, True, "1"):
        with pytest.raises(BadSparsity, match="classes="):
            sc.prune(model, "obs", classes=wrong, **how)
    for wrong in (3, -3, 7):
        with pytest.raises(WrongModel, match=f"classes={wrong} is no axis"):
            sc.prune(model, "obs", classes=wrong, **how)
    single = nn.Linear(3, 1).double()
    with pytest.raises(WrongModel, match=r"output \[N, 1\] holds one.*always 1"):
        sc.prune(single, "obs", **{**how, "task": sc.Task([x[:, 0]])})


def test_outputs_that_are_no_tensor_are_named():
    class Answers(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return {"logits": self.fc(x)}

    for kind in ("squared", "cross_entropy", "sampled"):
        with pytest.raises(NeedsTask, match="the model gives dict"):
            sc.prune(Answers(), "obs", sparsity=0.5, curvature=kind, task=sc.Task([torch.randn(8, 3)]))


def test_classes_are_counted_per_sample_by_the_fisher_matrix():
    """Rows of many places are all one sample's, so that damping weighs as much beside them."""
    model, x, axis = tagger()
    labels = torch.zeros(40, 7, dtype=torch.long)
    task = sc.Task([(x, labels)], loss=lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten()))
    found = sc.prune(model, "block_fisher", sparsity=0.5, task=task, curvature="cross_entropy", classes=axis)
    assert found.report.settings["gradients"] == 40
