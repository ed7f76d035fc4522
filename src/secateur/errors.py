"""Everything that Secateur raises on purpose. Each message says what is wrong, why, and what to do."""

__all__ = [
    "BadCalibration",
    "BadFile",
    "BadPattern",
    "BadRecipe",
    "BadSchedule",
    "BadScores",
    "BadSparsity",
    "ExportFailed",
    "NarrowingFailed",
    "NeedsPackage",
    "NeedsTask",
    "NothingToPrune",
    "OverBudget",
    "SearchFailed",
    "SecateurError",
    "UnknownLayer",
    "UnknownName",
    "UnknownOperation",
    "WrongModel",
]


class SecateurError(Exception):
    """The parent of every error that Secateur raises on purpose."""


class BadCalibration(SecateurError, ValueError):
    """Calibration data hold NaN or infinite numbers, or say nothing (all the same), so that no layer can be measured on them."""


class BadFile(SecateurError, ValueError):
    """A model file is damaged, truncated, hostile, or not one of ours."""


class BadPattern(SecateurError, ValueError):
    """A granularity does not fit the shape of a weight."""


class BadRecipe(SecateurError, ValueError):
    """A recipe has an unknown key, a wrong type or an impossible value."""


class BadSchedule(SecateurError, ValueError):
    """A schedule contradicts itself, or ends after the training does."""


class BadScores(SecateurError, ValueError):
    """Scores hold NaN, or do not match the weights they rank."""


class BadSparsity(SecateurError, ValueError):
    """A sparsity outside [0, 1), or one that cannot be met under the limits given."""


class ExportFailed(SecateurError, RuntimeError):
    """A model cannot be written for another runtime, or computes something else there; no file was left behind."""


class NeedsPackage(SecateurError, ImportError):
    """An optional package is not installed; the message says how to get it."""


class NarrowingFailed(SecateurError, RuntimeError):
    """A narrowed model does not compute what the masked one does; it was put back as it was."""


class NeedsTask(SecateurError, ValueError):
    """A criterion needs data, a loss or an evaluation that the call did not bring."""


class NothingToPrune(SecateurError, ValueError):
    """No weight is left to prune after types, ``ignore`` and shapes were taken into account."""


class OverBudget(SecateurError, ValueError):
    """A budget cannot be met."""


class SearchFailed(SecateurError, RuntimeError):
    """A search found nothing that could be scored."""


class UnknownLayer(SecateurError, TypeError):
    """A layer keeps its weights in a way Secateur has no rule for."""


class UnknownName(SecateurError, KeyError):
    """A name matches nothing: a criterion, a granularity, a layer, a parameter."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UnknownOperation(SecateurError, NotImplementedError):
    """An operation has no coupling rule; the message says which rule to add."""


class WrongModel(SecateurError, ValueError):
    """Masks, a file or a run belong to another model."""
