"""Filter shapes: one input channel at one kernel position leaves from all filters of a layer, a column of the matrix that a convolution multiplies with.

(Wen et al. 2016, "Learning structured sparsity", section 3.1; "shape-wise" in structured ADMM, Zhang et al. 2018.)
"""

from secateur.granularities.pattern import Pattern

__all__ = ["parse"]


def parse(text: str) -> Pattern | None:
    """Read ``"shape"``.

    >>> parse("shape").units
    'i k'
    """
    if text != "shape":
        return None
    return Pattern(name="shape", weights="o i k", groups="", units="i k", elements="o")
