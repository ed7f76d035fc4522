"""All architectures by family."""

from collections.abc import Iterator

from benchmarks.coverage.cases import Entry


def entries(library: str) -> Iterator[Entry]:
    """The architectures of one library: "torchvision", "timm" or "transformers"."""
    if library == "torchvision":
        from benchmarks.coverage import vision as zoo
    elif library == "timm":
        from benchmarks.coverage import imagenets as zoo  # type: ignore[no-redef]
    else:
        from benchmarks.coverage import huggingface as zoo  # type: ignore[no-redef]
    return zoo.entries()


def find(family: str, name: str) -> Entry:
    """One architecture."""
    return next(e for e in entries(family.split(maxsplit=1)[0]) if e.name == name)
