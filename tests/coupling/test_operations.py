"""Operations that write by index, pack, sample, quantise or cut triangles: channels pass, and what is narrowed equals what is masked."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import secateur as sc
from secateur.coupling.running import run, tensors_of

EDGES = torch.tensor([[0, 1, 2, 2, 4, 3], [1, 2, 0, 3, 3, 4]])


class Messages(nn.Module):
    """Nodes add up what their neighbours send."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.send, self.last = how, nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        sent, to = self.send(x)[EDGES[0]].relu(), EDGES[1]
        got, wide = x.new_zeros(len(x), sent.size(1)), to[:, None].expand_as(sent)
        match self.how:
            case "index_add":
                got = got.index_add(0, to, sent)
            case "scatter_add":
                got.scatter_add_(0, wide, sent)
            case "scatter_reduce":
                got = got.scatter_reduce(0, wide, sent, "amax")
            case "index_put":
                got.index_put_((to,), sent, accumulate=True)
            case "rows":
                got[to[:3]] = sent[:3]
            case "columns":
                got = got.T.contiguous()
                got[:, to[:3]] = sent[:3].T
                got = got.T
        return self.last(got)


class Image(nn.Module):
    """Rows of one tensor replace marked rows of another, as images replace tokens in a text."""

    def __init__(self):
        super().__init__()
        self.words, self.image, self.last = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        marked = (torch.arange(len(x)) % 2 == 0)[:, None].expand(-1, 10 if self.words.out_features > 9 else 5)
        y = self.words(x)
        return self.last(y.masked_scatter(marked[:, : y.shape[1]], self.image(x)).relu())


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.cell, self.last = nn.Linear(6, 8), nn.LSTM(8, 10, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([len(x[0]), *[2] * (len(x) - 1)])
        y, _ = self.cell(pack_padded_sequence(self.stem(x), lengths, batch_first=True))
        return self.last(pad_packed_sequence(y, batch_first=True)[0])


class Unpooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.last = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 8), (8, 2)))

    def forward(self, x: Tensor) -> Tensor:
        y, where = F.max_pool2d(self.stem(x), 2, return_indices=True)
        return self.last(F.max_unpool2d(self.inner(y), where, 2))


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(self.last(F.rrelu(self.first(x))), 0.01, 0, -128, 127)


class Symmetric(nn.Module):
    """A weight made of one triangle."""

    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 10), nn.Linear(10, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.weight.triu() + self.inner.weight.triu(1).T
        return self.last(F.linear(self.first(x).relu(), weight, self.inner.bias).relu())


class Spectrum(nn.Module):
    """To frequencies and back, with channels beside them."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        window, y = torch.hann_window(8), self.stem(x)
        frequencies = torch.stft(y.reshape(-1, y.shape[-1]), 8, 2, window=window, return_complex=True)
        return self.last(torch.istft(frequencies, 8, 2, window=window, length=y.shape[-1]).view(y.shape))


class Splines(nn.Module):
    """Every input on a grid of three points: inputs and points share an axis, and only inputs may leave."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.outputs = outputs
        self.weight, self.plain = nn.Parameter(torch.randn(outputs, inputs, 3)), nn.Linear(inputs, outputs)
        self.register_buffer("points", torch.linspace(-1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        bumps = (-(x[..., None] - self.points).square()).exp()
        return F.linear(bumps.flatten(1), self.weight.view(self.outputs, -1)) + self.plain(x)


class Chebyshev(nn.Module):
    """The same as a product over inputs and degrees."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, 4))

    def forward(self, x: Tensor) -> Tensor:
        powers = (x.tanh()[..., None].expand(-1, -1, 4).acos() * torch.arange(4)).cos()
        return torch.einsum("bid,iod->bo", powers, self.weight)


class Conditioned(nn.Module):
    """A mixture of weights for every image, applied to the batch as groups of one convolution."""

    def __init__(self):
        super().__init__()
        self.outputs, self.inputs = 8, 6
        self.stem, self.route = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)
        self.weight, self.last = nn.Parameter(torch.randn(2, 8, 6, 3, 3)), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        b, c, h, w = x.shape
        mixed = self.route(x.mean((2, 3))).sigmoid() @ self.weight.flatten(1)
        y = F.conv2d(x.reshape(1, b * c, h, w), mixed.view(b * self.outputs, self.inputs, 3, 3), padding=1, groups=b)
        return self.last(y.view(b, self.outputs, h, w).relu())


class Fourier(nn.Module):
    """Complex weights on the lowest frequencies."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv1d(2, 8, 1), nn.Conv1d(6, 2, 1)
        self.outputs, self.weight = 6, nn.Parameter(torch.randn(8, 6, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        low = torch.fft.rfft(self.stem(x))
        kept = torch.zeros(len(x), self.outputs, low.shape[-1], dtype=torch.cfloat)
        kept[..., :3] = torch.einsum("bix,iox->box", low[..., :3], self.weight)
        return self.last(torch.fft.irfft(kept, n=x.shape[-1]))


CASES = {
    how: (Messages(how), (5, 6))
    for how in ("index_add", "scatter_add", "scatter_reduce", "index_put", "rows", "columns")
} | {
    "masked_scatter": (Image(), (6, 6)),
    "packed": (Packed(), (3, 5, 6)),
    "unpooled": (Unpooled(), (2, 3, 8, 8)),
    "quantised": (Quantised(), (4, 6)),
    "triangle": (Symmetric(), (4, 6)),
    "spectrum": (Spectrum(), (2, 2, 32)),
    "splines": (nn.Sequential(Splines(4, 10), Splines(10, 2)), (3, 4)),
    "chebyshev": (nn.Sequential(Chebyshev(4, 10), Chebyshev(10, 2)), (3, 4)),
    "conditioned": (Conditioned(), (2, 3, 8, 8)),
    "fourier": (Fourier(), (2, 2, 16)),
}


@pytest.mark.parametrize("name", CASES)
def test_half_of_the_channels_leave_and_the_result_is_the_same(name):
    model, shape = CASES[name]
    pruned = sc.prune(
        model.eval(), "random", granularity="channel", sparsity=0.5, scope="layer", example_inputs=torch.randn(shape)
    )
    assert pruned.report.after.params <= 0.65 * pruned.report.before.params
    masked, fresh = pruned.masks.apply_(copy.deepcopy(model)), torch.randn(shape)
    with torch.no_grad():
        for a, b in zip(tensors_of(run(masked, fresh)), tensors_of(run(pruned.model, fresh)), strict=True):
            torch.testing.assert_close(a, b)


class Exponential(nn.Module):
    """An operation of PyTorch that has no rule, beside layers that have nothing to do with it."""

    def __init__(self):
        super().__init__()
        self.turn, self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 10), nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu()) @ torch.linalg.matrix_exp(self.turn.weight)


def test_an_operation_of_torch_without_a_rule_holds_what_it_touches():
    coupling = sc.couple(Exponential(), torch.randn(4, 6))
    assert [f"{g.units} {g.name}" for g in coupling.groups()] == ["10 up.weight"]
    assert "has no coupling rule (`linalg_matrix_exp`)" in coupling.explain("turn")
    pruned = sc.prune(Exponential(), sparsity=0.5, granularity="channel", example_inputs=torch.randn(4, 6))
    assert any("linalg_matrix_exp" in note for note in pruned.report.notes)
