"""A pool of earlier fakes: the discriminator sees some of them again, so that generators do not run in circles (Shrivastava et al. 2017)."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["ImagePool"]


class ImagePool:
    """Gives back the image it gets, or, half of the time once it is full, an earlier one that it then replaces.

    Args:
        size: how many images it holds; 0 gives everything back.
        seed: of its choices.
    """

    def __init__(self, size: int = 50, *, seed: int = 0) -> None:
        self.size = size
        self.images: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def exchange(self, images: Tensor) -> Tensor:
        """``[batch, ...]`` to the same, detached."""
        return torch.stack([self._one(image.detach()) for image in images])

    def _one(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if not self.size or float(torch.rand((), generator=self.generator)) < 0.5:
            return image
        place = int(torch.randint(self.size, (), generator=self.generator))
        earlier, self.images[place] = self.images[place], image.clone()
        return earlier

    def state_dict(self) -> dict[str, Any]:
        """What it holds and where its choices stand."""
        return {"images": list(self.images), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` said."""
        self.images = [image.clone() for image in state["images"]]
        self.generator.set_state(state["generator"])
