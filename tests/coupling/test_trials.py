"""What code that holds sizes costs: the groups that fail a trial, and no others."""

import copy

import pytest
import torch
from torch import Tensor, nn

import secateur as sc


class Literal(nn.Module):
    """One of two branches has its width written into the code."""

    def __init__(self):
        super().__init__()
        self.fixed, self.free = nn.Linear(6, 8), nn.Linear(6, 10)
        self.after, self.last = nn.Linear(8, 3), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.fixed(x).relu().reshape(-1, 8)) + self.last(self.free(x).relu())


class Stack(nn.Module):
    """Equal blocks of such branches, one after the other."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Literal() for _ in range(6))
        self.back = nn.ModuleList(nn.Linear(3, 6) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for block, back in zip(self.blocks, self.back, strict=True):
            x = x + back(block(x))
        return x


class Padded(nn.Module):
    """PyTorch packs padded tokens away before the layers of its encoder see them."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 20, batch_first=True), 2)
        self.last = nn.Linear(16, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(self.words(x), src_key_padding_mask=x == 0))


def test_a_branch_whose_code_is_fixed_holds_only_itself():
    coupling = sc.couple(Literal(), torch.randn(4, 6))
    assert [f"{g.units} {g.name}" for g in coupling.groups()] == ["10 free.weight"]
    assert "the code of Literal cannot follow" in coupling.explain("fixed.weight")


def test_equal_blocks_are_held_at_once(monkeypatch):
    from secateur.coupling import trial

    runs = []
    plain = trial.Trial.__call__
    monkeypatch.setattr(trial.Trial, "__call__", lambda self, structure: runs.append(1) or plain(self, structure))
    coupling = sc.couple(Stack(), torch.randn(4, 6))
    held = [name for name in coupling.dye.owners if "cannot follow" in coupling.explain(name)]
    assert sorted(held) == sorted(
        f"blocks.{k}.{n}" for k in range(6) for n in ("after.weight", "fixed.bias", "fixed.weight")
    )
    assert len(runs) < 12


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_encoders_that_pack_padding_away_lose_heads_and_compute_the_same():
    torch.manual_seed(0)
    model, tokens = Padded().eval(), torch.tensor([[3, 4, 5, 6], [3, 4, 0, 0], [1, 0, 0, 0]])
    pruned = sc.prune(model, "random", granularity="channel", sparsity=0.5, scope="layer", example_inputs=tokens)
    assert pruned.model.encoder.layers[0].self_attn.num_heads == 2
    masked = pruned.masks.apply_(copy.deepcopy(model))
    with torch.no_grad():
        torch.testing.assert_close(pruned.model(tokens), masked(tokens))


class Counting(nn.Module):
    """A scale that nobody can see: the number of rows of a weight, beside a layer that has nothing to do with it."""

    def __init__(self):
        super().__init__()
        self.counted, self.free, self.last = nn.Linear(6, 8), nn.Linear(6, 10), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.counted(x) * len(self.counted.weight)
        return self.last(torch.cat([first, self.free(x)], 1).relu())


def test_a_group_that_changes_the_result_stays_and_the_rest_leaves():
    model, x = Counting().eval(), torch.randn(4, 6)
    pruned = sc.prune(model, sparsity=0.5, granularity="channel", scope="layer", example_inputs=x)
    assert (pruned.model.counted.out_features, pruned.model.free.out_features) == (8, 5)
    assert any("computed something else without them" in note for note in pruned.report.notes)
    assert "counted.weight" not in pruned.masks
    fresh = torch.randn(3, 6)
    with torch.no_grad():
        torch.testing.assert_close(pruned.model(fresh), pruned.masks.apply_(copy.deepcopy(model))(fresh))


class Cache:
    """Keys of the tokens so far, as generation keeps them."""

    def __init__(self, keys: Tensor):
        self.keys = keys


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.key, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, cache: Cache | None = None) -> dict[str, object]:
        keys = self.key(x) if cache is None else torch.cat([cache.keys, self.key(x)])
        return {"out": self.last(keys.relu()), "cache": Cache(keys)}


def test_a_cache_that_the_model_takes_back_follows():
    model, x = Cached().eval(), torch.randn(4, 6)
    thin = sc.prune(model, sparsity=0.5, granularity="channel", scope="layer", example_inputs=x).model
    assert thin(x, thin(x)["cache"])["out"].shape == (8, 3)
    assert thin.key.out_features == 4


class Experts(nn.Module):
    """Tokens go where a router sends them; one expert gets none."""

    def __init__(self):
        super().__init__()
        self.stem, self.route, self.last = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16)) for _ in range(3))
        with torch.no_grad():
            self.route.weight.mul_(20)
            self.route.bias[1] = -500

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        chosen, out = self.route(x).argmax(-1), torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            out[chosen == k] = expert(x[chosen == k])
        return self.last(x + out)


def test_an_expert_without_tokens_stays_and_the_others_lose_channels():
    torch.manual_seed(0)
    model, x = Experts().eval(), torch.randn(20, 6)
    pruned = sc.prune(model, "random", granularity="channel", sparsity=0.5, scope="layer", example_inputs=x)
    assert [expert[0].out_features for expert in pruned.model.experts] == [4, 8, 4]
    with torch.no_grad():
        torch.testing.assert_close(pruned.model(x), pruned.masks.apply_(copy.deepcopy(model))(x))


class Picked(nn.Module):
    """Code that takes one channel alone, by its position."""

    def __init__(self, pick):
        super().__init__()
        self.inner, self.last, self.pick = nn.Linear(6, 8), nn.Linear(8, 3), pick

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        return self.last(h.relu()) * self.pick(h).reshape(-1, 1)


@pytest.mark.parametrize(
    "pick", [lambda h: h[:, 2], lambda h: h[:, 1:2], lambda h: h[:, -1:], lambda h: h.unbind(1)[3], lambda h: h.split([1, 7], 1)[0]]
)  # fmt: skip
def test_a_channel_that_is_picked_by_its_position_stays(pick):
    with pytest.raises(sc.errors.NothingToPrune, match="may leave"):
        sc.prune(Picked(pick), granularity="channel", sparsity=0.5, example_inputs=torch.randn(4, 6))


class Detector(nn.Module):
    """Boxes of a class whose score is high get a mask; nothing scores high on this example, so the head for masks gets no boxes."""

    def __init__(self):
        super().__init__()
        self.body, self.scores, self.boxes = nn.Linear(6, 16), nn.Linear(16, 2), nn.Linear(16, 8)
        self.masks = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).relu()
        scores, boxes = (
            self.scores(h).softmax(-1)[:, 1:].reshape(-1),
            self.boxes(h).reshape(-1, 2, 4)[:, 1:].reshape(-1, 4),
        )
        found = torch.where(scores > 1)[0]
        return boxes[found], self.masks(boxes[found])


def test_a_detector_that_finds_nothing_keeps_its_classes_and_the_head_that_was_not_seen():
    model, x = Detector().eval(), torch.randn(20, 6)
    coupling = sc.couple(model, x)
    assert [group.name for group in coupling.groups()] == ["body.weight"]
    assert "is empty in this example" in coupling.explain("masks.0")


class Table(nn.Module):
    """A projection of constants, which no layer makes."""

    def __init__(self):
        super().__init__()
        self.inner, self.last, self.place = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(4, 3)
        self.register_buffer("places", torch.randn(5, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x).relu()) + self.place(self.places)


def test_what_only_reads_a_table_of_constants_stays():
    assert [group.name for group in sc.couple(Table(), torch.randn(5, 6)).groups()] == ["inner.weight"]
