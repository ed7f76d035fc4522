"""Derivatives sample by sample, vectorised (`torch.func`), and the curvature that follows from them.

Every curvature here is a sum of outer products, H = 1/P sum_k X_k X_k^T, said by its rows X_k:

    "squared"        d output / d w, all outputs          Gauss-Newton of half the squared error (Hassibi & Stork 1993, eq. 8)
    "cross_entropy"  (diag sqrt p - p sqrt p^T)^T d logit / d w    Gauss-Newton of cross-entropy = the exact Fisher
    "sampled"        gradient of -log p(y), y drawn from the model   the Fisher by one draw
    "empirical"      gradient of the task's loss               the empirical Fisher: needs labels, equal to the others only at a minimum

An output with a softmax at each of many places, such as tokens or pixels, is the sum of their cross-entropies for every sample; which of
its axes holds the classes, `secateur.curvatures.class_axis` says.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from secateur.activations import called
from secateur.curvatures.class_axis import by_class, tensor_of
from secateur.curvatures.singles import singles_of
from secateur.curvatures.vetting import vetted
from secateur.errors import BadCalibration, NeedsTask, UnknownName
from secateur.examples import leaving_no_trace
from secateur.gates import examples_in
from secateur.task import Task

__all__ = ["CURVATURES", "curvature_rows", "flat_weights", "flattened", "parts_of", "unflattened_"]

CURVATURES = ("squared", "cross_entropy", "sampled", "empirical")


def flat_weights(model: nn.Module, names: Sequence[str]) -> Tensor:
    """All named parameters as one float64 vector."""
    return torch.cat([model.get_parameter(name).detach().double().flatten() for name in names])


def flattened(tensors: Mapping[str, Tensor], names: Sequence[str], start: int = 0) -> Tensor:
    """Tensors by name as one, flattened from dimension ``start`` on."""
    return torch.cat([tensors[name].flatten(start) for name in names], start)


def parts_of(flat: Tensor, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """A vector over all named parameters as one tensor for each, shaped and placed like it."""
    own = [model.get_parameter(name) for name in names]
    parts = torch.split(flat, [parameter.numel() for parameter in own])
    return {n: part.view(p.shape).to(p.device) for n, p, part in zip(names, own, parts, strict=True)}


@torch.no_grad()
def unflattened_(model: nn.Module, names: Sequence[str], flat: Tensor) -> None:
    """Write a vector back into the named parameters."""
    for name, part in parts_of(flat, model, names).items():
        model.get_parameter(name).copy_(part)


def curvature_rows(
    model: nn.Module,
    names: Sequence[str],
    task: Task | None,
    kind: str,
    *,
    who: str,
    seed: int = 0,
    chunk: int | None = 64,
    most: int | None = None,
    classes: int | None = None,
) -> Iterator[tuple[Tensor, int]]:
    """Yield ``(rows [k, weights], samples)`` batch by batch.

    Args:
        model: left as it was; run in eval mode.
        names: of the parameters.
        task: batches ``inputs`` or ``(inputs, labels)``; its loss for "empirical".
        kind: one of `CURVATURES`.
        who: for messages.
        seed: for "sampled".
        chunk: samples whose derivatives are made together.
        most: no batch is begun when so many samples were seen.
        classes: the axis of the output that holds the classes, for "cross_entropy" and "sampled"; None: by its shape.

    Raises:
        NeedsTask: no batches, or no loss for "empirical".
        UnknownName: there is no such curvature.
        WrongModel: it is not clear which axis holds the classes.
    """
    if kind not in CURVATURES:
        raise UnknownName(f"curvature={kind!r} is not known: use one of {', '.join(CURVATURES)}")
    if task is None:
        raise NeedsTask(f"{who} needs data: pass task=sc.Task(batches)")
    generator = torch.Generator().manual_seed(seed)
    own = {name: model.get_parameter(name).detach() for name in names}
    tried = kind == "empirical"
    for batch in vetted(_up_to(task.each_batch(who), most)):
        with leaving_no_trace(model), torch.enable_grad(), _states_of_each(model):
            if kind == "empirical":
                rows = _gradients(model, own, batch, task, who=who, chunk=chunk)
                if not bool(torch.isfinite(rows).all()):
                    raise BadCalibration(
                        "gradients of Task.loss hold NaN or infinite numbers: look at the loss and the labels"
                    )
                yield rows, len(rows)
                continue
            x = _first_of(batch, kind, who)
            if not tried:
                with torch.no_grad():
                    called(model, batch)  # which knows what to say where the model does not take it
                tried = True
            how = {"classes": classes, "chunk": chunk}
            if kind == "sampled":
                yield _sampled(model, own, x, generator=generator, **how), len(x)
            else:
                yield _rows(model, own, x, kind, **how), len(x)


@contextmanager
def _states_of_each(model: nn.Module) -> Iterator[None]:
    """Recurrent layers change the state that they begin with in place, so every sample needs one of its own, also where all begin at zero."""

    def begin(layer: nn.RNNBase, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else None
        if len(args) > 1 or kwargs.get("hx") is not None or not isinstance(x, Tensor):
            return None
        batch = (x.shape[0 if layer.batch_first else 1],) if x.dim() == 3 else ()
        shape = (layer.num_layers * (1 + layer.bidirectional), *batch, layer.hidden_size)
        return (x, x.new_zeros(shape) + 0 * x.flatten()[0]), kwargs

    layers = [m for m in model.modules() if isinstance(m, nn.RNN | nn.GRU)]
    hooks = [layer.register_forward_pre_hook(begin, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first_of(batch: Any, kind: str, who: str) -> Tensor:
    """What the model is called on.

    Raises:
        NeedsTask: it is no tensor.
    """
    x = batch[0] if isinstance(batch, tuple | list) else batch
    if not isinstance(x, Tensor):
        raise NeedsTask(
            f"{who} with {kind!r} gradients calls the model on a batch's first entry, which has to be a tensor here, not "
            f"{type(x).__name__}; 'empirical' ones go through Task.loss, which may take any batch"
        )
    return x


def _up_to(batches: Iterator[Any], most: int | None) -> Iterator[Any]:
    seen = 0
    for batch in batches:
        yield batch
        seen += examples_in(batch)
        if most is not None and seen >= most:
            return


def _sampled(
    model: nn.Module,
    own: Mapping[str, Tensor],
    x: Tensor,
    *,
    generator: torch.Generator,
    classes: int | None,
    chunk: int | None,
) -> Tensor:
    """Gradients of ``-log p(y)``, ``y`` drawn from the model at every place of every sample."""
    with torch.no_grad():
        chances = by_class(tensor_of(model(x), "sampled"), len(x), classes, "sampled").softmax(2)
    drawn = torch.multinomial(chances.flatten(0, 1).cpu(), 1, generator=generator).to(x.device)
    labels = drawn.view(*chances.shape[:2], 1)  # [samples, places, 1]

    def surprise(parameters: Mapping[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        out = tensor_of(functional_call(model, dict(parameters), (one.unsqueeze(0),)), "sampled")
        logits = by_class(out, 1, classes, "sampled").squeeze(0)  # [places, classes]
        chosen: Tensor = logits.log_softmax(1).gather(1, label)
        return -chosen.sum()

    found = _of_each(grad(surprise), own, (x, labels), chunk)
    return flattened(found, list(own), 1).detach()


def _rows(
    model: nn.Module, own: Mapping[str, Tensor], x: Tensor, kind: str, *, classes: int | None, chunk: int | None
) -> Tensor:
    def weighed(parameters: Mapping[str, Tensor], one: Tensor) -> Tensor:
        """What has the rows as its Jacobian: outputs times the root of the loss's own curvature, held fixed."""
        out = tensor_of(functional_call(model, dict(parameters), (one.unsqueeze(0),)), kind)
        if kind == "squared":
            return out.flatten()
        out = by_class(out, 1, classes, kind).squeeze(0)  # [places, classes]
        p = out.detach().softmax(1)
        root: Tensor = p.sqrt() * (out - (p * out).sum(1, keepdim=True))
        return root.flatten()

    found = _of_each(jacrev(weighed), own, (x,), chunk)
    rows: Tensor = flattened(found, list(own), 2).flatten(0, 1).detach()
    return rows


def _gradients(
    model: nn.Module, own: Mapping[str, Tensor], batch: Any, task: Task, *, who: str, chunk: int | None
) -> Tensor:
    loss = task.needs_loss(who)
    singles, names = singles_of(batch, who), list(own)

    def of_one(parameters: Mapping[str, Tensor], single: Any) -> Tensor:
        return loss(_Called(model, parameters), single)  # type: ignore[arg-type]

    def of_parts(parameters: Mapping[str, Tensor], *parts: Tensor) -> Tensor:
        return of_one(parameters, singles.joined([part.unsqueeze(0) for part in parts]))

    if singles.are_tensors:
        return flattened(_of_each(grad(of_parts), own, singles.parts, chunk), names, 1).detach()
    each = [flattened(grad(of_one)(own, singles.one(k)), names) for k in range(singles.count)]
    return torch.stack(each).detach()


def _of_each(
    one: Callable[..., Any], own: Mapping[str, Tensor], parts: Sequence[Tensor], chunk: int | None
) -> Mapping[str, Tensor]:
    """``one`` for every sample: for many together, or, where the model looks at numbers as masks of transformers do, one after another."""
    try:
        together: Mapping[str, Tensor] = vmap(one, in_dims=(None, *(0 for _ in parts)), chunk_size=chunk)(own, *parts)
    except RuntimeError as error:
        if "vmap" not in str(error) and "batching rule" not in str(error).lower():
            raise
    else:
        return together
    each = [one(own, *(part[k] for part in parts)) for k in range(len(parts[0]))]
    return {name: torch.stack([found[name] for found in each]) for name in own}


class _Called:
    """A model with other parameters: what a task's loss calls."""

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        self._model, self._parameters = model, parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._model, dict(self._parameters), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
