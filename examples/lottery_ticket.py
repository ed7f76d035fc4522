"""The lottery ticket: prune, rewind to the initial weights, train again; is the ticket better than a random one?

python examples/lottery_ticket.py
"""

import copy

import torch

import secateur as sc
from secateur.demo import DigitsNet, digits_task, fit

torch.manual_seed(0)
model, task = DigitsNet(), digits_task()
start = copy.deepcopy(model.state_dict())
fit(model, task, epochs=5)
print(f"dense {task.evaluate(model):.1f} %")

for criterion in ("magnitude", "random"):
    ticket = sc.methods.Iterative(sparsity=0.95, rounds=4, criterion=criterion)(
        model,
        lambda student: fit(student, task, epochs=5),
        rewind_to=start,
        task=task,
        on_round=lambda number, masks: print(f"  round {number}: {masks.sparsity:.1%} removed"),
    )
    print(
        f"{criterion}: {task.evaluate(ticket.model):.1f} % with {ticket.masks.kept:,} of {ticket.masks.total:,} weights"
    )
