"""Energy of one inference on a systolic array, from how often data moves (Yang, Zhu & Liu 2019, ICLR, section 3 and appendix A).

    E = sum over layers of  E_weights(nnz) + E_inputs + E_computation(nnz)             nnz: weights that are not zero; P: output positions

    weights      nnz * (ceil(P/rows) * cache + P * register) + dram * (min(nnz, cache size) + ceil(P/rows) * max(0, nnz - cache size))
    inputs       taps * (ceil(d/columns) * cache + d * register) + dram * (inputs + rows read twice + outputs)           (convolution)
                 c * (ceil(d/columns) * cache + d * register) + dram * (outputs + c once, or ceil(d/columns) times beyond the cache)
    computation  mac * P * nnz

So given the inputs of a layer, energy is linear in its non-zero weights, with a bend where they overflow their cache. The defaults are the
paper's: an array and caches like Eyeriss (12 x 14, 100 kB for inputs, 8 kB for weights, 16 bit), a multiplication with its registers 3, main memory
200, cache 6, register 1; in units of about one picojoule. Bias, norms, activations, pooling, embeddings and the products of attention
scores, which have no weights, cost nothing here.

A recurrent layer passes its ``weight_hh`` once for every time, since each needs the state of the one before; states stay in the cache, and
are written out once. (The paper has no such layers.)
"""

import math
from dataclasses import dataclass
from typing import final

from secateur.energy.uses import Use
from secateur.errors import BadSparsity

__all__ = ["SystolicArray"]


@final
@dataclass(frozen=True, kw_only=True)
class SystolicArray:
    """The hardware, in numbers: sizes in values (16 bit each), energies in picojoules.

    >>> SystolicArray().slopes(Use(name="fc.weight", out_dim=0, in_dim=1, weights=20, positions=1, inputs=5, outputs=4))
    (210.0, 210.0)
    """

    rows: int = 12
    columns: int = 14
    input_cache: int = 100 * 1024 // 2
    weight_cache: int = 8 * 1024 // 2
    mac: float = 3.0
    dram: float = 200.0
    cache: float = 6.0
    register: float = 1.0

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.input_cache, self.weight_cache) < 1:
            raise BadSparsity(f"{self}: an array has at least one row and column, and caches of at least one value")

    def slopes(self, use: Use) -> tuple[float, float]:
        """What one more non-zero weight costs while the weights fit into their cache, and beyond."""
        passes = self._passes(use)
        moved = passes * self.cache + use.positions * (self.register + self.mac)
        return moved + self.dram, moved + self.dram * (passes if use.taps else 1)

    def _passes(self, use: Use) -> int:
        """How often the weights go through the array."""
        return use.steps * math.ceil(use.positions / use.steps / self.rows)

    def of_weights(self, use: Use, kept: int | None = None) -> float:
        """Weights and computation, with ``kept`` weights that are not zero."""
        kept, (near, far) = use.weights if kept is None else kept, self.slopes(use)
        return near * min(kept, self.weight_cache) + far * max(0, kept - self.weight_cache)

    def of_inputs(self, use: Use) -> tuple[float, float, float]:
        """What follows inputs and outputs together, inputs alone, and outputs alone."""
        passes = math.ceil(use.width / self.columns)
        if not use.taps:
            again = max(0, use.inputs - self.input_cache) * (passes - 1)
            both = use.inputs * (passes * self.cache + use.width * self.register)
            return both + self.dram * again, self.dram * use.inputs, self.dram * use.outputs
        both = use.taps * (passes * self.cache + use.width * self.register)
        held = max(use.kernel, self.input_cache // max(1, use.row))  # rows of the image that the cache holds
        bands = math.ceil(use.height / max(1, held - use.kernel + use.stride))
        twice = use.row * max(0, use.kernel - use.stride) * max(0, bands - 1)
        return both, self.dram * (use.inputs + twice), self.dram * use.outputs

    def energy(self, use: Use, kept: int | None = None) -> float:
        """All of it, in picojoules."""
        return self.of_weights(use, kept) + sum(self.of_inputs(use))
