"""What the tables of a recipe have in common: strict, frozen, no unknown keys; and the kinds of values in them."""

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from secateur.counting import check_sparsity
from secateur.recipe.inputs import check_input, is_dotted

__all__ = ["Dotted", "Inputs", "Options", "Sparsity", "Table", "Texts"]


def _is_dotted(text: str) -> str:
    if not is_dotted(text):
        raise ValueError(f"{text!r} is no dotted path; write package.module:name, e.g. mypkg.nets:make")
    return text


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _one_or_several(value: object) -> object:
    return (value,) if isinstance(value, str) else _as_tuple(value)


Scalar: TypeAlias = bool | int | float | str
Options: TypeAlias = dict[str, Scalar | Annotated[tuple[Scalar, ...], BeforeValidator(_as_tuple)]]
Dotted = Annotated[str, AfterValidator(_is_dotted)]
Sparsity = Annotated[float, AfterValidator(check_sparsity)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_several)]
Inputs = Annotated[tuple[Annotated[str, AfterValidator(check_input)], ...], BeforeValidator(_one_or_several)]


class Table(BaseModel):
    """A table whose keys are all known and whose values have their very types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
