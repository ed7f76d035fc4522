"""A checkpoint in, a pruned checkpoint out: what `prune` gives, in the files of the new folder, with the old ones as they were."""

import hashlib
import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import secateur as sc
from secateur.errors import BadFile, WrongModel
from secateur.mapped import hollow, mapped, tensors_in

WIDTH = 16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(WIDTH, 24), nn.BatchNorm1d(24), nn.Linear(24, WIDTH)

    def forward(self, x):
        return x + self.down(torch.relu(self.norm(self.up(x))))


class Net(nn.Module):
    """Blocks between an embedding and a head that is tied to it; one buffer that no file holds."""

    def __init__(self, blocks=3):
        super().__init__()
        self.embed = nn.Embedding(10, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    def forward(self, x):
        x = self.embed(x) * self.scale
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.fixture
def source(tmp_path):
    """Two shards, an index, and something else that belongs to a checkpoint."""
    torch.manual_seed(0)
    state = Net().state_dict()
    state.pop("head.weight")  # tied: the file has it once
    folder, names = tmp_path / "in", list(state)
    folder.mkdir()
    where = {}
    for at in range(2):
        part = {name: state[name].clone() for name in names[at::2]}
        save_file(part, folder / f"model-{at}.safetensors", metadata={"format": "pt"})
        where |= dict.fromkeys(part, f"model-{at}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "words.txt").write_text("one two")
    return folder


def task():
    generator = torch.Generator().manual_seed(1)
    return sc.Task([torch.randint(10, (32,), generator=generator) for _ in range(3)])


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def state_in(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


HOW = {"sparsity": 0.5, "ignore": ["head"]}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_gives_what_prune_gives(source, tmp_path, scope):
    before, target = digest(source), tmp_path / "out"
    receipt = sc.prune_on_disk(Net, source, target, task=task(), scope=scope, **HOW)
    model = mapped(Net, source)
    inside = sc.prune(model, "layer_obs", task=task(), scope=scope, **HOW)
    found, wanted = state_in(target), inside.model.state_dict()
    assert set(found) == set(wanted) - {"head.weight"}
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]), name
    assert receipt.after.nonzeros == inside.report.after.nonzeros < receipt.before.nonzeros
    assert digest(source) == before
    assert not (tmp_path / "out.part").exists()
    assert set(digest(target)) == set(before)
    assert (target / "tokenizer" / "words.txt").read_text() == "one two"


def test_a_single_file(tmp_path):
    torch.manual_seed(0)

    def build():
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).to(torch.bfloat16)

    save_file(build().state_dict(), tmp_path / "in.safetensors")
    batches = sc.Task([torch.randn(64, 8).to(torch.bfloat16)])
    sc.prune_on_disk(build, tmp_path / "in.safetensors", tmp_path / "out.safetensors", task=batches, granularity="2:4")
    found = load_file(tmp_path / "out.safetensors")
    assert found["0.weight"].dtype == torch.bfloat16
    assert (found["0.weight"].view(8, 2, 4) != 0).sum(2).max() <= 2


def test_a_killed_run_goes_on_after_the_last_block_that_was_finished(source, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sc.prune_on_disk(Net, source, whole, task=task(), scope="layer", **HOW)

    def die(done, _of, _block, _left):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sc.prune_on_disk(Net, source, cut, task=task(), scope="layer", progress=die, **HOW)
    assert not cut.exists()
    finished = sorted(path.name for path in (tmp_path / "cut.part" / "secateur-run").glob("*.safetensors"))
    stamps = [(tmp_path / "cut.part" / "secateur-run" / name).stat().st_mtime_ns for name in finished]
    seen = []

    def watch(_done, _of, _block, _left):
        run = tmp_path / "cut.part" / "secateur-run"
        seen.append([(run / name).stat().st_mtime_ns for name in finished])

    sc.prune_on_disk(Net, source, cut, task=task(), scope="layer", progress=watch, **HOW)
    assert len(finished) == 2
    assert seen
    assert all(found == stamps for found in seen)  # not written again
    assert digest(cut) == digest(whole)


def test_what_cannot_work_is_refused_before_anything_is_written(source, tmp_path):
    with pytest.raises(BadFile, match="is there already"):
        sc.prune_on_disk(Net, source, source, task=task(), **HOW)
    with pytest.raises(BadFile, match="lies inside"):
        sc.prune_on_disk(Net, source, source / "out", task=task(), **HOW)
    with pytest.raises(BadFile, match="holds no safetensors"):
        sc.prune_on_disk(Net, tmp_path / "nothing", tmp_path / "out", task=task(), **HOW)
    with pytest.raises(WrongModel, match=r"holds nothing for blocks\.3"):
        sc.prune_on_disk(lambda: Net(4), source, tmp_path / "out", task=task(), **HOW)
    (source / "model-1.safetensors").rename(tmp_path / "away")
    with pytest.raises(BadFile, match=r"lacks model-1.safetensors, which its index names"):
        sc.prune_on_disk(Net, source, tmp_path / "out", task=task(), **HOW)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["away", "in"]


def test_files_that_are_damaged_or_of_another_network(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file({"weight": torch.zeros(3, 3), "bias": torch.zeros(3)}, file)
    with pytest.raises(WrongModel, match=r"'weight' is \[3, 3\] in .*, but \[4, 3\]"):
        mapped(lambda: nn.Linear(3, 4), file)
    whole = file.read_bytes()
    for length in (0, 5, 40, len(whole) - 4):
        file.write_bytes(whole[:length])
        with pytest.raises(BadFile, match="that can be mapped"):
            tensors_in(file)
    for there, here in ((b"F32", b"F99"), (b"[3,3]", b"[3,9]")):
        file.write_bytes(whole.replace(there, here))
        with pytest.raises(BadFile, match="that can be mapped"):
            tensors_in(file)


def test_maps_are_private_or_the_file(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file({"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, file)
    with torch.no_grad():
        mapped(lambda: nn.Linear(2, 2), file).weight.fill_(1)
        assert load_file(file)["weight"].sum() == 0
        mapped(lambda: nn.Linear(2, 2), file, shared=True).weight.fill_(1)
    assert load_file(file)["weight"].sum() == 4


def test_a_hollow_network_keeps_buffers_and_ties():
    with hollow():
        net = Net()
    assert net.embed.weight.is_meta
    assert net.head.weight is net.embed.weight
    assert net.scale.item() == 0.5
    assert not nn.Linear(2, 2).weight.is_meta


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see what memory the process itself holds")
def test_memory_grows_with_a_block_and_not_with_the_network(tmp_path):
    """96 MB more of blocks of 4 MB each: what the process itself holds at most stays about as it was."""
    program = textwrap.dedent("""
        import sys, threading, torch, secateur as sc
        from torch import nn
        place, blocks = sys.argv[1], int(sys.argv[2])
        class Wide(nn.Linear):
            def forward(self, x):
                return x + super().forward(x)[:, :512]
        def held():
            return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024
        peak, over = [0.0], threading.Event()
        def watch():
            while not over.wait(0.01):
                peak[0] = max(peak[0], held())
        threading.Thread(target=watch, daemon=True).start()
        sc.prune_on_disk(lambda: nn.Sequential(*[Wide(512, 2048) for _ in range(blocks)]), f"{place}/in{blocks}.safetensors",
                         f"{place}/out{blocks}.safetensors", task=sc.Task([torch.randn(8, 512)]), sparsity=0.5, scope="layer", solver="magnitude")
        over.set()
        print(peak[0])
    """)

    def peak(blocks):
        state = {f"{at}.weight": torch.randn(2048, 512) for at in range(blocks)}
        save_file(
            state | {f"{at}.bias": torch.zeros(2048) for at in range(blocks)}, tmp_path / f"in{blocks}.safetensors"
        )
        command = [sys.executable, "-c", program, str(tmp_path), str(blocks)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    small, large = peak(8), peak(32)
    assert large - small < 24, f"{small:.0f} MB, then {large:.0f} MB"
