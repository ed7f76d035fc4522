"""Distillation: the numbers of the paper by hand, a teacher that stays as it is, and students of another width."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import UnknownName, WrongModel


class Fixed(nn.Module):
    """A model that returns given logits."""

    def __init__(self, rows):
        super().__init__()
        self.out = nn.Parameter(torch.tensor(rows))

    def forward(self, x):
        return self.out


X = torch.zeros(1, 1)


def test_hinton_by_hand():
    """T = 2: teacher (2 ln 3, 0) is (3/4, 1/4), student (0, 0) is (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2), times 4."""
    teacher, student = Fixed([[2 * math.log(3), 0.0]]), Fixed([[0.0, 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert sc.distillation(teacher, temperature=2)(student, X).item() == pytest.approx(expected, rel=1e-5)
    hard = sc.distillation(teacher, lambda model, batch: model(batch).sum() + 10, temperature=2, weight=0.25)
    assert hard(student, X).item() == pytest.approx(0.75 * 10 + 0.25 * expected, rel=1e-5)


def test_hot_it_matches_logits():
    """Equation 4 of the paper: for T to infinity the gradient is (z - v) / N for logits of mean zero, here times T^2."""
    teacher, student = Fixed([[1.0, -1.0, 0.0]]), Fixed([[0.5, 0.5, -1.0]])
    sc.distillation(teacher, temperature=1e3)(student, X).backward()
    torch.testing.assert_close(student.out.grad, (student.out - teacher.out).detach() / 3, rtol=0, atol=2e-3)


def test_regression_is_the_mean_square():
    teacher, student = Fixed([[1.0, 2.0]]), Fixed([[0.0, 4.0]])
    assert sc.distillation(teacher, temperature=None)(student, X).item() == 2.5


@given(st.floats(0.5, 20), st.integers(0, 1000))
def test_a_student_like_its_teacher_has_nothing_to_learn(temperature, seed):
    torch.manual_seed(seed)
    teacher = nn.Linear(4, 3)
    student, x = copy.deepcopy(teacher), torch.randn(5, 4)
    loss = sc.distillation(teacher, temperature=temperature)
    value = loss(student, x)
    value.backward()
    assert abs(value.item()) < 1e-5
    assert student.weight.grad.abs().max() < 1e-4
    student.weight.data += 0.1 * torch.randn(3, 4)
    assert loss(student, x).item() > 0


def net(width):
    layers = [nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * 16, 3))


def test_the_teacher_is_left_alone():
    teacher, student, x = net(4).train(), net(2).train(), torch.randn(3, 1, 6, 6)
    teacher[0].eval()
    before = copy.deepcopy(teacher.state_dict())
    state = torch.get_rng_state()
    student.eval()
    loss = sc.distillation(teacher, lambda model, batch: model(batch).square().mean(), features={"0": 1.0})
    loss(student, x).backward()
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in teacher] == [False, True, True, True, True, True]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is not None for p in student.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for one in (teacher, student) for m in one.modules())


def test_features_by_hand():
    """Teacher: two examples at right angles, G = 1; student: the same direction, rows (1, 1) / sqrt 2."""
    teacher, student = (nn.Sequential(Fixed(rows), nn.Flatten()) for rows in ([[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]]))
    loss = sc.distillation(teacher, temperature=None, features={"0": 8.0}, logits=lambda out: out.new_zeros(1))
    apart = 2 * (1 - 1 / math.sqrt(2)) ** 2 + 2 * (1 / math.sqrt(2)) ** 2
    assert loss(student, X).item() == pytest.approx(8 * apart / 4, rel=1e-5)


def test_features_of_a_narrowed_student_train_it():
    torch.manual_seed(0)
    teacher, x = net(8).eval(), torch.randn(6, 1, 6, 6)
    student = sc.prune(teacher, sparsity=0.5, granularity="channel", example_inputs=x).model
    assert student[0].out_channels == 4
    loss = sc.distillation(teacher, features={"2": 3.0})
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    first = loss(student, x).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss(student, x).backward()
        optimizer.step()
    assert loss(student, x).item() < 0.5 * first


def test_keyword_inputs_and_outputs_that_are_no_tensor():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 3)

        def forward(self, *, ids):
            return {"logits": self.fc(ids)}

    batch = {"ids": torch.ones(4, 2)}
    teacher, student = Words(), Words()
    assert sc.distillation(teacher, logits=lambda out: out["logits"])(student, batch).item() > 0
    with pytest.raises(WrongModel, match="returns a dict, no tensor"):
        sc.distillation(teacher)(student, batch)


def test_refusals():
    model = nn.Linear(2, 2)
    with pytest.raises(WrongModel, match="temperature=0 must be above 0"):
        sc.distillation(model, temperature=0)
    with pytest.raises(WrongModel, match="weight=2 between 0 and 1"):
        sc.distillation(model, weight=2)
    with pytest.raises(WrongModel, match="cannot be its own teacher"):
        sc.distillation(model)(model, torch.ones(1, 2))
    with pytest.raises(WrongModel, match="did not call the model"):
        sc.distillation(model, lambda m, b: b.sum())(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(WrongModel, match=r"output is \[1, 3\], the teacher's \[1, 2\]"):
        sc.distillation(model)(nn.Linear(2, 3), torch.ones(1, 2))
    with pytest.raises(UnknownName, match=r"has no such module; it has 0"):
        sc.distillation(model, features={"nope": 1.0})(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
