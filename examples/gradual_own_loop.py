"""Gradual pruning in your own loop, with what real loops have: bfloat16 autocast, clipping, a schedule, an EMA, a checkpoint.

    python examples/gradual_own_loop.py

The pruning is the four lines marked with a star. The checkpoint in the middle is taken up bit for bit.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import secateur as sc
from secateur.demo import DigitsNet, digits_task

EPOCHS = 12
torch.manual_seed(0)
task = digits_task()
steps = EPOCHS * len(task.batches)

model = DigitsNet()
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
warm_down = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

method = sc.methods.Gradual(sparsity=0.9, schedule=sc.PolynomialDecay(begin_step=60, end_step=180, frequency=20))  # *
run = method.start(model, optimizer, total_steps=steps, task=task, copies=[ema])  # *

checkpoint = Path(tempfile.mkdtemp()) / "checkpoint.pt"
for epoch in range(EPOCHS):
    for images, labels in task.batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.step()  # *
        ema.update_parameters(model)
        warm_down.step()
    if epoch == 5:  # in the middle of the schedule: keep everything, load everything, go on
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruning": run.state_dict()}, checkpoint
        )
        kept = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        run.load_state_dict(kept["pruning"])
    print(f"epoch {epoch + 1:2}   loss {loss.item():.3f}   removed {run.masks.sparsity:.1%}")

pruned = run.finish()  # *
print(f"\nmodel {task.evaluate(pruned.model):.1f} %, its moving average {task.evaluate(ema.module):.1f} %")

for name, kept_weights in pruned.masks.items():
    assert not pruned.model.get_parameter(name)[~kept_weights].any(), f"a zero of {name} came back"
    assert not ema.module.get_parameter(name)[~kept_weights].any(), f"a zero of {name} came back in the average"
print(f"all {pruned.masks.total - pruned.masks.kept:,} zeros are exactly zero, in the model and in its average")
