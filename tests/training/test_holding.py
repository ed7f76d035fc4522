"""Zeros stay exactly zero, under whatever a training loop does."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateur as sc
import zoo

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd_all": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "sgd_foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.5),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.05, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, centered=True, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


def removed_values(model, masks):
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return torch.cat([parameters[name].detach()[~mask].reshape(-1).float() for name, mask in masks.items()])


def assert_held(model, masks):
    assert torch.equal(removed_values(model, masks), torch.zeros_like(removed_values(model, masks)))


def train(model, optimizer, batches, each=lambda: None):
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = zoo.loss_of(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        each()


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "warmed_up"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name, warm):
    """Warmed up: momentum and moments of weights that leave now are alive."""
    model, x = zoo.make("conv2d")
    optimizer = OPTIMIZERS[name](model.parameters())
    if warm:
        train(model, optimizer, [x] * 3)
    masks = sc.prune(model, sparsity=0.6).masks
    alive = {n: model.get_parameter(n).detach().clone() for n in masks}
    with sc.hold(model, masks, optimizer):
        assert_held(model, masks)
        train(model, optimizer, [x] * 4, each=lambda: assert_held(model, masks))
    moved = [not torch.equal(alive[n][masks[n]], model.get_parameter(n).detach()[masks[n]]) for n in masks]
    assert all(moved)  # and the others did train


@pytest.mark.parametrize("name", [n for n in zoo.ZOO if n != "parametrised"])
def test_every_layer_type(name):
    model, x = zoo.make(name)
    masks = (
        sc.prune(model, sparsity=0.5).masks
        if name != "hugging"
        else sc.Masks({n: torch.rand_like(p) > 0.5 for n, p in model.named_parameters() if p.dim() > 1})
    )
    optimizer = OPTIMIZERS["sgd_all"](model.parameters())
    keys = list(model.state_dict())
    sc.hold(model, masks, optimizer)
    train(model, optimizer, [x] * 3, each=lambda: assert_held(model, masks))
    assert list(model.state_dict()) == keys


def test_a_fresh_elementwise_optimizer_needs_no_handle():
    for make in (OPTIMIZERS["sgd_all"], OPTIMIZERS["adam"], OPTIMIZERS["adamw"]):
        model, x = zoo.make("linear")
        masks = sc.prune(model, sparsity=0.5).masks
        with sc.hold(model, masks):
            train(model, make(model.parameters()), [x] * 3, each=lambda m=model, k=masks: assert_held(m, k))


def test_accumulation_clipping_autocast_and_a_scaler():
    model, x = zoo.make("conv2d")
    masks = sc.prune(model, sparsity=0.6).masks
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with sc.hold(model, masks, optimizer):
        for step in range(4):
            for micro in range(3):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = zoo.loss_of(model, x + micro + step)
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            kept = torch.cat([model.get_parameter(n).grad[m] for n, m in masks.items()])
            others = [p.grad.reshape(-1) for n, p in model.named_parameters() if n not in masks]
            expected = torch.cat([kept, *others]).norm().item()  # what is removed does not count
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01).item() == pytest.approx(expected, rel=1e-5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert_held(model, masks)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["swa", "ema"])
def test_averaged_models_that_are_watched(average):
    model, x = zoo.make("linear")
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer, [x])
    averaged = AveragedModel(model, multi_avg_fn=average)
    averaged.update_parameters(model)
    by_hand = copy.deepcopy(model)
    masks = sc.prune(model, sparsity=0.6).masks
    handle = sc.hold(model, masks, optimizer, copies=[averaged]).watch(by_hand)
    for _ in range(3):
        train(model, optimizer, [x])
        averaged.update_parameters(model)
        with torch.no_grad():
            for mean, parameter in zip(by_hand.parameters(), model.parameters(), strict=True):
                mean.lerp_(parameter, 0.1)
        assert_held(averaged.module, masks)
        assert_held(by_hand, masks)
    fewer = sc.prune(model, sparsity=0.8).masks
    handle.renew(fewer)
    assert_held(averaged.module, fewer)
    assert_held(by_hand, fewer)


def test_a_copy_whose_own_child_is_called_module():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(4, 4)

    model = Wrapper()
    masks, twin = sc.prune(model, sparsity=0.5).masks, copy.deepcopy(model)
    sc.hold(model, masks, copies=[twin, nn.DataParallel(twin)])
    assert_held(twin, masks)


def test_release_lets_go_and_may_be_called_twice():
    model, x = zoo.make("linear")
    masks, optimizer = sc.prune(model, sparsity=0.5).masks, OPTIMIZERS["sgd"](model.parameters())
    handle = sc.hold(model, masks, optimizer)
    train(model, optimizer, [x])
    handle.release()
    handle.release()
    assert_held(model, masks)
    train(model, optimizer, [x])
    assert removed_values(model, masks).abs().sum() > 0
    assert not optimizer._optimizer_step_post_hooks
    assert all(
        not p._post_accumulate_grad_hooks for p in model.parameters() if p._post_accumulate_grad_hooks is not None
    )


def test_copies_pickles_and_files_in_the_middle_of_a_run():
    model, x = zoo.make("lstm")
    optimizer = OPTIMIZERS["adam"](model.parameters())
    masks = sc.prune(model, sparsity=0.5).masks
    sc.hold(model, masks, optimizer)
    train(model, optimizer, [x] * 2)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert_held(twin, masks)
        assert torch.equal(twin(x), model(x))
        assert list(twin.state_dict()) == list(model.state_dict())
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.state_dict().keys() == optimizer.state_dict().keys()


def test_frozen_parameters_and_several_dtypes():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).double(), nn.Linear(8, 4).bfloat16())
    model[0].requires_grad_(False)
    masks = sc.prune(model, sparsity=0.5).masks
    optimizer = OPTIMIZERS["sgd_all"]([p for p in model.parameters() if p.requires_grad])
    with sc.hold(model, masks, optimizer):
        for _ in range(3):
            y = model[2](model[1](model[0](torch.randn(4, 8)).double()).bfloat16())
            y.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert_held(model, masks)
    assert [p.dtype for p in model.parameters()] == [torch.float32] * 2 + [torch.float64] * 2 + [torch.bfloat16] * 2


def test_infinite_gradients_do_not_leak_through():
    model = nn.Linear(2, 1, bias=False)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with sc.hold(model, sc.Masks({"weight": torch.tensor([[True, False]])}), optimizer):
        model(torch.tensor([[1.0, torch.inf]])).sum().backward()
        optimizer.step()
        assert model.weight[0, 1].item() == 0.0


def test_two_optimizers_on_two_models_know_nothing_of_each_other():
    models = [zoo.make("linear", seed)[0] for seed in (1, 2)]
    optimizers = [OPTIMIZERS["adam"](m.parameters()) for m in models]
    masks = [sc.prune(m, sparsity=s).masks for m, s in zip(models, (0.3, 0.7), strict=True)]
    handles = [sc.hold(m, k, o) for m, k, o in zip(models, masks, optimizers, strict=True)]
    x = torch.randn(4, 8)
    for _ in range(3):
        (models[0](x) - models[1](x)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        for model, mask in zip(models, masks, strict=True):
            assert_held(model, mask)
    handles[0].release()
    assert_held(models[1], masks[1])


def test_masks_of_another_model_are_refused_before_anything_changes():
    model, _ = zoo.make("linear")
    before = copy.deepcopy(model.state_dict())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for wrong in ({"nope": torch.ones(1, dtype=torch.bool)}, {"0.weight": torch.ones(2, 2, dtype=torch.bool)}):
        with pytest.raises(sc.errors.WrongModel):
            sc.hold(model, sc.Masks(wrong), optimizer)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_a_compiled_model_trains_under_its_masks():
    model, x = zoo.make("linear")
    compiled = torch.compile(model, backend="aot_eager")
    masks, optimizer = sc.prune(model, sparsity=0.5).masks, OPTIMIZERS["adamw"](compiled.parameters())
    with sc.hold(model, masks, optimizer):
        train(compiled, optimizer, [x] * 3, each=lambda: assert_held(model, masks))
        assert torch.equal(compiled(x), model(x))
