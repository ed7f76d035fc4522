"""Data-parallel ADMM: two processes end with the same masks and weights, bit for bit."""

import subprocess
import sys
import textwrap
from pathlib import Path

import torch

import secateur as sc

PROGRAM = """
import sys, torch, torch.distributed as dist
from torch import nn
import secateur as sc
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2))
parallel = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.Adam(parallel.parameters(), lr=0.01)
run = {method}.start(model, optimizer{inputs})
data = torch.Generator().manual_seed(100 + rank)  # every rank sees its own
for _ in range(30):
    x = torch.randn(16, 10, generator=data)
    optimizer.zero_grad()
    (nn.functional.cross_entropy(parallel(x), (x[:, 0] > 0).long()) + run.penalty()).backward()
    optimizer.step()
    run.step()
pruned = run.finish()
torch.save({{"masks": dict(pruned.masks), "model": pruned.model.state_dict()}}, f"{folder}/{{rank}}.pt")
dist.destroy_process_group()
"""


def test_two_processes_agree_bit_for_bit(tmp_path):
    program = tmp_path / "train.py"
    program.write_text(
        textwrap.dedent(PROGRAM).format(
            method="sc.methods.ADMM(sparsity=0.8, rho=1e-2, growth=1.2, every=4, iterations=5)",
            inputs="",
            folder=tmp_path,
        )
    )
    source = str(Path(sc.__file__).parents[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)]
    subprocess.run(
        command, check=True, timeout=240, env={"PYTHONPATH": source, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    )
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert sum(int(mask.sum()) for mask in one["masks"].values()) == round(0.2 * (320 + 64))
    for part in ("masks", "model"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
