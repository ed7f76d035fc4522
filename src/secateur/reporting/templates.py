"""The templates of pages: everything that comes from the user is escaped, and a name that is missing is an error."""

from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["environment"]


def environment() -> Environment:
    """What loads and fills in the templates of this folder."""
    return Environment(
        loader=PackageLoader("secateur.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
