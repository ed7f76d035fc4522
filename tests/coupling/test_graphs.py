"""The fallback to an exported graph: sizes written into a forward become attributes, and the graph narrows like any module."""

import copy

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.coupling.coupling import couple
from secateur.errors import UnknownName, UnknownOperation, WrongModel
from secateur.graphs import as_graph, batch_of, copied
from secateur.masks import Masks

pytestmark = pytest.mark.filterwarnings("ignore:`isinstance")  # what copy.deepcopy of a graph makes torch say


class HardWired(nn.Module):
    """Attention as vision transformers have it: the output is put together by the width of the input."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0.1)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) * (C // self.heads) ** -0.5).softmax(-1)
        return self.drop(self.proj((attention @ v).transpose(1, 2).reshape(B, N, C)))


class Literal(nn.Module):
    """Numbers in the code itself: slices, a split, a fill, a grouped norm, a grouped convolution."""

    def __init__(self):
        super().__init__()
        self.grow, self.mix, self.gate = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 16)
        self.wide = nn.Conv1d(16, 24, 1)
        self.kernel, self.scale = nn.Parameter(torch.randn(24, 4, 3)), nn.Parameter(torch.rand(24))
        self.narrow = nn.Conv1d(24, 16, 1)

    def forward(self, x):
        h = self.grow(x)
        h = torch.cat([h[..., :8].relu(), h[..., 8:].tanh()], -1) + x.new_zeros(24)
        a, b = self.gate(x + self.mix(h)).split(8, -1)
        h = self.wide((x * torch.cat([a, b], -1)).transpose(1, 2))
        h = nn.functional.group_norm(h, 6, self.scale)
        h = nn.functional.conv1d(h, self.kernel, padding=1, groups=6)
        return self.narrow(h).transpose(1, 2)


class Windows(nn.Module):
    """Attention in windows, with a table of relative positions and an uneven head split."""

    def __init__(self, width=16, heads=4, window=2):
        super().__init__()
        self.width, self.heads, self.window = width, heads, window
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = (places[:, :, None] - places[:, None]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        B, H, W, C = x.shape
        w = self.window
        t = x.view(B, H // w, w, W // w, w, C).transpose(2, 3).reshape(-1, w * w, C)
        M, N, _ = t.shape
        q, k, v = self.qkv(t).reshape(M, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(N, N, -1).permute(2, 0, 1)
        a = ((q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1) + bias).softmax(-1)
        t = self.proj((a @ v).transpose(1, 2).reshape(M, N, C))
        return t.view(B, H // w, W // w, w, w, C).transpose(2, 3).reshape(B, H, W, C)


def hard_wired():
    return nn.Sequential(nn.Linear(6, 16), HardWired(), nn.LayerNorm(16), HardWired(heads=2), nn.Linear(16, 3))


CASES = {
    "attention": (hard_wired, (1, 5, 6)),
    "literal": (Literal, (2, 5, 16)),
    "windows": (lambda: nn.Sequential(nn.Linear(3, 16), Windows(), nn.Linear(16, 2)), (2, 4, 6, 3)),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    torch.manual_seed(0)
    make, shape = CASES[request.param]
    model, x = make().eval(), torch.randn(shape)
    return make, model, x, couple(model, x, fallback="graph")


def random_masks(model, coupling, seed):
    """A random half of the units of every group leaves, one stays at least."""
    draw = torch.Generator().manual_seed(seed)
    masks = {}
    for group in coupling.groups():
        out = torch.rand(group.units, generator=draw) < 0.5
        out[torch.randint(group.units, (), generator=draw)] = False
        for (name, dim), index in group.places.items():
            if name in dict(model.named_parameters()):
                mask = masks.setdefault(name, torch.ones(model.get_parameter(name).shape, dtype=torch.bool))
                mask.index_fill_(dim, index[out].reshape(-1), False)
    return Masks(masks)


@pytest.mark.parametrize("seed", range(6))
def test_the_narrowed_graph_equals_the_masked_model(case, seed):
    _, model, x, coupling = case
    masks = random_masks(model, coupling, seed)
    if masks.kept == masks.total:
        pytest.skip("nothing drawn")
    before = copy.deepcopy(model.state_dict())
    thin = sc.narrow(model, masks, x, coupling=coupling)
    masked = masks.apply_(copy.deepcopy(model))
    for batch in (x.shape[0], 3):
        fresh = torch.randn(batch, *x.shape[1:])
        torch.testing.assert_close(thin(fresh), masked(fresh), rtol=1e-5, atol=1e-5)
    thin(fresh).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert set(masks) <= {name for name, _ in model.named_parameters()} == {n for n, _ in thin.named_parameters()}


def test_heads_leave_that_the_class_holds_back():
    model, x = hard_wired().eval(), torch.randn(1, 5, 6)
    assert not [g for g in couple(model, x).groups() if g.kind == "head"]
    coupling = couple(model, x, fallback="graph")
    assert [(g.name, g.units) for g in coupling.groups() if g.kind == "head"] == [
        ("1.qkv.weight", 4),
        ("3.qkv.weight", 2),
    ]
    assert "HardWired cannot follow" in coupling.said
    assert "batch size is free" in coupling.said


def test_a_class_that_follows_stays_a_class():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    coupling = couple(model, torch.randn(1, 4), fallback="graph")
    assert coupling.graph is None
    assert not coupling.said


def test_prune_says_so_saves_and_loads_into_the_original_class(tmp_path):
    model, x = hard_wired(), torch.randn(2, 5, 6)
    pruned = sc.prune(model, sparsity=0.5, granularity="channel", scope="layer", fallback="graph", example_inputs=x)
    assert any("exported graph" in note for note in pruned.report.notes)
    # width 16, heads of 4 and of 8: 12 numbers a head and input for qkv of the first, 8 of proj
    assert pruned.model.get_parameter("1.qkv.weight").shape == (24, 8)
    assert pruned.model.get_parameter("1.proj.weight").shape == (16, 8)
    assert pruned.masks["1.qkv.weight"].shape == (48, 16)
    sc.save(pruned, tmp_path / "thin.safetensors")
    again = sc.load(tmp_path / "thin.safetensors", hard_wired().eval())
    fresh = torch.randn(7, 5, 6)
    assert torch.equal(again.model(fresh), pruned.model.eval()(fresh))
    assert all(torch.equal(pruned.masks[name], mask) for name, mask in again.masks.items())
    with pytest.raises(WrongModel):
        sc.load(tmp_path / "thin.safetensors", nn.Sequential(*hard_wired(), nn.ReLU()))


def test_the_optimizer_goes_along_and_training_is_training():
    torch.manual_seed(0)
    model, x = hard_wired(), torch.randn(4, 5, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(x).square().mean().backward()
    optimizer.step()
    coupling = couple(model, x, fallback="graph")
    weight = model[1].qkv.weight
    thin = sc.narrow(model, random_masks(model, coupling, 1), x, coupling=coupling, optimizer=optimizer)
    assert thin.get_parameter("1.qkv.weight") is weight
    assert optimizer.state[weight]["exp_avg"].shape == weight.shape != (48, 16)
    assert thin.training
    assert not torch.equal(thin(x), thin(x))  # dropout
    first = float(thin.eval()(x).detach().square().mean())
    for _ in range(20):
        optimizer.zero_grad()
        thin.train()(x).square().mean().backward()
        optimizer.step()
    assert float(thin.eval()(x).detach().square().mean()) < first


def test_a_graph_shares_parameters_and_computes_the_same():
    model, x = hard_wired().eval(), torch.randn(1, 5, 6)
    graph = as_graph(model, {"input": x})
    assert batch_of(graph) is None
    assert graph.get_parameter("1.qkv.weight") is model[1].qkv.weight
    assert list(graph.state_dict()) == list(model.state_dict())
    assert torch.equal(copied(graph)(input=x), model(x))


def test_what_cannot_be_captured_is_said():
    class Asks(nn.Module):
        def forward(self, x):
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(UnknownOperation, match="cannot capture Asks"):
        as_graph(Asks(), torch.randn(2, 3))
    with pytest.raises(UnknownName, match="fallback='gragh'"):
        couple(nn.Linear(2, 2), torch.randn(1, 2), fallback="gragh")


def test_a_graph_of_more_than_tensors_prunes_and_is_not_saved(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = hard_wired()

        def forward(self, pair):
            return self.net(pair[0]) + self.net(pair[1])

    x = [torch.randn(2, 5, 6), torch.randn(2, 5, 6)]
    pruned = sc.prune(Pair(), sparsity=0.5, granularity="channel", fallback="graph", example_inputs=(x,))
    assert isinstance(pruned.model, torch.fx.GraphModule)
    with pytest.raises(WrongModel, match=r"torch\.export\.save"):
        sc.save(pruned, tmp_path / "thin.safetensors")


def test_a_batch_that_the_code_fixes_is_said():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = HardWired()
            self.out = nn.Linear(16, 2)

        def forward(self, x):
            return self.out(self.net(x)).reshape(4, 10)

    coupling = couple(Fixed(), torch.randn(4, 5, 16), fallback="graph")
    assert "batch size is fixed to 4" in coupling.said
