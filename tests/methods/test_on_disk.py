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
    file.write_bytes(whole.replace(b"[3,3]", b"[3,9]"))
    with pytest.raises(BadFile, match="that can be mapped"):
        tensors_in(file)
    file.write_bytes(whole.replace(b"F32", b"C64"))
    assert tensors_in(file) == {}  # types that nobody asks for


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


class Shared(nn.Module):
    """One parameter in two layers."""

    def __init__(self):
        super().__init__()
        weight = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.one.weight = self.other.weight = weight

    def forward(self, x):
        return self.other(torch.relu(self.one(x)))


def plain():
    return sc.Task([torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(k)) for k in range(3)])


def small():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))


@pytest.mark.parametrize("names", [("one.weight",), ("one.weight", "other.weight")])
def test_tied_weights_saved_once_or_twice(tmp_path, names):
    state = {name: tensor.clone() for name, tensor in Shared().state_dict().items() if name in names or "bias" in name}
    save_file(state, tmp_path / "in.safetensors")
    receipt = sc.prune_on_disk(
        Shared, tmp_path / "in.safetensors", tmp_path / "out.safetensors", task=plain(), sparsity=0.5
    )
    model, found = Shared(), load_file(tmp_path / "out.safetensors")
    model.load_state_dict(found, strict=False)
    assert set(found) == set(state)
    assert sum(int((p != 0).sum()) for p in model.parameters()) == receipt.after.nonzeros
    if len(names) == 2:
        save_file(state | {"other.weight": state["other.weight"] + 1}, tmp_path / "in.safetensors")
        with pytest.raises(WrongModel, match="are one tensor in this network, but two different ones"):
            mapped(Shared, tmp_path / "in.safetensors")


def test_what_stands_where_the_unfinished_checkpoint_would_is_not_touched(tmp_path):
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(small().state_dict(), source)
    mine = tmp_path / "out.safetensors.part"
    mine.mkdir()
    (mine / "mine.txt").write_text("precious")
    with pytest.raises(BadFile, match="it is something else"):
        sc.prune_on_disk(small, source, target, task=plain(), sparsity=0.5)
    assert (mine / "mine.txt").read_text() == "precious"
    inside = tmp_path / "ck.part"
    inside.mkdir()
    save_file(small().state_dict(), inside / "model.safetensors")
    with pytest.raises(BadFile, match="which stays as it is"):
        sc.prune_on_disk(small, inside, tmp_path / "ck", task=plain(), sparsity=0.5)
    assert [path.name for path in inside.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"task": None},
        {"task": sc.Task([torch.ones(4, WIDTH)])},
        {"ignore": ["nope"]},
        {"sparsity": None},
        {"granularity": "3:40"},
    ],
)
def test_nothing_is_left_of_a_run_that_could_not_begin(tmp_path, wrong):
    save_file(small().state_dict(), tmp_path / "in.safetensors")
    how = {"task": plain(), "sparsity": 0.5} | wrong
    with pytest.raises(sc.errors.SecateurError):
        sc.prune_on_disk(small, tmp_path / "in.safetensors", tmp_path / "out.safetensors", **how)
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_networks_that_were_made_before_are_refused_or_copied(tmp_path):
    save_file(small().state_dict(), tmp_path / "in.safetensors")
    made = small()
    with pytest.raises(WrongModel, match="is in memory already"):
        mapped(lambda: made, tmp_path / "in.safetensors")
    with pytest.raises(WrongModel, match="build gave NoneType"):
        mapped(lambda: None, tmp_path / "in.safetensors")
    with torch.device("meta"):
        empty = small()
    receipt = sc.prune_on_disk(
        lambda: empty, tmp_path / "in.safetensors", tmp_path / "out.safetensors", task=plain(), sparsity=0.5
    )
    assert receipt.after.nonzeros < receipt.before.nonzeros
    assert empty[0].weight.is_meta


@pytest.mark.parametrize(
    ("types", "words"),
    [(("int8", "float32"), "quantised"), (("float16", "float32"), "write the checkpoint in one type")],
)
def test_types_that_a_layer_cannot_use(tmp_path, types, words):
    state = {n: t.to(getattr(torch, types[n.endswith("bias")])) for n, t in small().state_dict().items()}
    save_file(state, tmp_path / "in.safetensors")
    with pytest.raises(WrongModel, match=words):
        mapped(small, tmp_path / "in.safetensors")


def test_links_in_a_checkpoint(source, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "more.txt").write_text("three")
    (source / "linked").symlink_to(tmp_path / "words")
    (source / "up").symlink_to(source)
    (source / "nowhere").symlink_to(tmp_path / "gone")
    sc.prune_on_disk(Net, source, tmp_path / "out", task=task(), scope="layer", **HOW)
    assert (tmp_path / "out" / "linked" / "more.txt").read_text() == "three"
    assert not (tmp_path / "out" / "nowhere").exists()


def test_an_index_that_is_wrong(source):
    index = source / "model.safetensors.index.json"
    for text, words in (("{", "is no index"), ('{"weight_map": {"a": "../b.safetensors"}}', "lies elsewhere")):
        index.write_text(text)
        with pytest.raises(BadFile, match=words):
            mapped(Net, source)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to see what memory the process itself holds")
def test_memory_grows_with_a_block_and_not_with_the_network(tmp_path):
    """96 MB more of blocks of 4 MB each: what the process itself holds at most grows by less than half of that.

    It is looked at every 10 ms, so it misses some of what a block needs for a moment (a sort holds 16 MB), more of it in
    the shorter run: on a busy machine 28 MB lay between two runs that need the same.
    """
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
        state = {f"{at}.weight": torch.randn(2048, 512) / 100 for at in range(blocks)}
        save_file(
            state | {f"{at}.bias": torch.zeros(2048) for at in range(blocks)}, tmp_path / f"in{blocks}.safetensors"
        )
        command = [sys.executable, "-c", program, str(tmp_path), str(blocks)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    small, large = peak(8), peak(32)
    assert large - small < 48, f"{small:.0f} MB, then {large:.0f} MB"
