"""A folder in which a long run writes down every stage that is finished, so that it can be taken up after a kill.

One safetensors file a stage, whole or not there, and ``run.json`` that says which run it belongs to.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import BadFile
from secateur.mapped import give_back
from secateur.replacing import replacing

__all__ = ["Journal", "fingerprint"]

_MASK = "mask/"


class Journal:
    """What is finished of one run; with ``folder`` None nothing is kept.

    Args:
        folder: made if it is not there.
        fingerprint: says which run this is.
        lean: whether masks, once written, stay in their files, mapped.

    Raises:
        BadFile: the folder belongs to another run.
    """

    def __init__(self, folder: str | None, fingerprint: str, *, lean: bool = False) -> None:
        self._lean = lean
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise BadFile(f"{self.folder} is a file: name a folder for the finished blocks")
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "run.json"
        if about.exists():
            if _run_in(about) != fingerprint:
                raise BadFile(
                    f"{self.folder} holds the finished blocks of another run (other settings, counts, batches or weights): name another "
                    "place for this one, or delete that one"
                )
            return
        with replacing(about) as beside:
            beside.write_text(json.dumps({"run": fingerprint}))

    def has(self, key: str) -> bool:
        """Whether this stage is finished."""
        return self.folder is not None and self._file(key).exists()

    def write(self, key: str, model: nn.Module, done: Any, names: Sequence[str], tuned: str = "") -> None:
        """Write down the weights, biases, masks and errors of a stage; all parameters of the block ``tuned``, which moves as a whole."""
        if self.folder is None:
            return
        tensors: dict[str, Tensor] = {}
        for name in names:
            tensors[name] = model.get_parameter(name).detach().cpu().contiguous()
            tensors[f"{_MASK}{name}"] = done.masks[name].cpu().contiguous()
            bias = f"{name.rpartition('.')[0]}.bias".lstrip(".")
            if bias in dict(model.named_parameters()):
                tensors[bias] = model.get_parameter(bias).detach().cpu().contiguous()
        if tuned:
            moved = model.get_submodule(tuned).named_parameters(prefix=tuned)
            tensors |= {name: p.detach().cpu().clone() for name, p in moved}
        rows = json.dumps([row for row in done.rows if row["name"] in set(names)])
        blocks = json.dumps([row for row in done.blocks if tuned and row["name"] == tuned])
        with replacing(self._file(key)) as beside:
            save_file(tensors, beside, metadata={"rows": rows, "blocks": blocks})
        if self._lean:
            with safe_open(self._file(key), "pt") as file:  # its tensors are maps of the file
                done.masks |= {name: file.get_tensor(f"{_MASK}{name}") for name in names}
            tensors.clear()
            give_back()

    def restore(self, key: str, model: nn.Module, done: Any) -> None:
        """Bring a finished stage back.

        Raises:
            BadFile: its file is damaged.
        """
        try:
            self._restore(key, model, done)
        except SafetensorError as error:
            raise BadFile(
                f"{self._file(key)} is damaged ({error}): delete it, and its block is pruned once more"
            ) from error

    def _restore(self, key: str, model: nn.Module, done: Any) -> None:
        with safe_open(self._file(key), "pt") as file, torch.no_grad():
            about = file.metadata() or {}
            done.rows += json.loads(about.get("rows", "[]"))
            done.blocks += json.loads(about.get("blocks", "[]"))
            for name in file.keys():  # noqa: SIM118  # not a dictionary
                tensor = file.get_tensor(name)
                if name.startswith(_MASK):
                    own = name.removeprefix(_MASK)
                    done.masks[own] = tensor if self._lean else tensor.to(model.get_parameter(own).device, copy=True)
                else:
                    model.get_parameter(name).copy_(tensor)

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"


def _run_in(about: Path) -> Any:
    try:
        return json.loads(about.read_text())["run"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{about} is damaged ({error}): delete its folder to begin anew, or name another one") from error


def fingerprint(words: str, held: Iterable[Any]) -> str:
    """What a run is told by: ``words``, and the sums of all tensors that it goes by."""
    sums = [_sums(value) for value in held if isinstance(value, Tensor) and not value.is_complex()]
    return f"{words} {hashlib.sha256(repr(sums).encode()).hexdigest()}"


def _sums(tensor: Tensor) -> tuple[float, float]:
    """Of a tensor and of its squares, a piece at a time."""
    total, squares = 0.0, 0.0
    for piece in torch.split(tensor.detach().reshape(-1), 1 << 20):
        exact = piece.double()
        total, squares = total + float(exact.sum()), squares + float(exact.square().sum())
    return total, squares
