"""Data sets that Python code and description files add to the table of known ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from swift_core.data.report import BadRow
from swift_core.data.rows import Row
from swift_core.errors import DataError
from swift_core.registry import DATASETS, TABLE
from swift_core.specs import DatasetSpec

RowLoader = Callable[..., Iterable[Any]]
"""Called with the subset, or with nothing when it takes nothing; gives rows as mappings of columns."""
Preprocess = Callable[[dict[str, Any]], Any]
"""Called with a row; gives the row to use, several rows, or None to leave it out."""

_loaders: dict[str, RowLoader] = {}
_preprocess: dict[str, Preprocess] = {}


def register_dataset(
    dataset: DatasetSpec | str,
    loader: RowLoader | None = None,
    *,
    preprocess: Preprocess | None = None,
    columns: Mapping[str, str] | None = None,
    subsets: tuple[str, ...] = (),
    override: bool = False,
) -> DatasetSpec:
    """Add a data set that `--dataset` then takes by name.

    Args:
        dataset: a spec with `hf_id`, `ms_id` or `path`, or a name alone together with a loader.
        loader: makes the rows; without it they are read from where the spec says.
        preprocess: reworks every row before its format is detected.
        columns: renaming, where a name alone is given.
        subsets: names of subsets that the loader knows, where a name alone is given.
        override: whether a data set of the same name is replaced.

    Returns:
        the spec as registered.

    Raises:
        RegistryError: when the name is taken and `override` is false.
        DataError: when there is nothing to read the rows from.
    """
    spec = DatasetSpec(name=dataset, summary="", columns=dict(columns or {}), subsets=subsets) if isinstance(dataset, str) else dataset
    if loader is None and not (spec.hf_id or spec.ms_id or spec.path or spec.target != DatasetSpec.__dataclass_fields__["target"].default):
        raise DataError(f"data set {spec.name!r} has no source", fix="give a loader, or a DatasetSpec with path, hf_id or ms_id")
    DATASETS.register(spec, source=_caller(loader or preprocess), override=override)
    for table, value in ((_loaders, loader), (_preprocess, preprocess)):
        table.pop(spec.name, None)
        if value is not None:
            table[spec.name] = value
    return DATASETS.get(spec.name)


def _caller(function: Callable[..., Any] | None) -> str:
    return "python" if function is None else f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"


def loader_of(spec: DatasetSpec) -> RowLoader | None:
    """Return the function that makes the rows of a data set, when Python code registered one."""
    return _loaders.get(spec.name)


def made_rows(spec: DatasetSpec, subset: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a registered loader.

    Raises:
        DataError: when the loader gives something that is no row.
    """
    loader = _loaders[spec.name]
    for number, values in enumerate(loader(subset) if _takes_one(loader) else loader()):
        if isinstance(values, Row | BadRow):
            yield values
        elif isinstance(values, Mapping):
            yield Row(dict(values), f"{spec.name}#{number}")
        else:
            raise DataError(
                f"the loader of data set {spec.name!r} gives {type(values).__name__}, not a mapping",
                location=f"{spec.name}#{number}",
                fix="yield dictionaries of columns",
            )


def _takes_one(loader: RowLoader) -> bool:
    parameters = inspect.signature(loader).parameters.values()
    return any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) and p.default is p.empty for p in parameters)


def reworked(spec: DatasetSpec, rows: Iterator[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield rows after the function that was registered for them."""
    preprocess = _preprocess.get(spec.name)
    if preprocess is None:
        yield from rows
        return
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            made = preprocess(dict(row.values))
        except Exception as error:  # noqa: BLE001  a stranger's function may fail in any way: the row is bad, and says why
            yield BadRow(row.origin, f"the preprocess function raised {type(error).__name__}: {error}", row.values)
            continue
        for values in () if made is None else made if isinstance(made, list | tuple) else (made,):
            yield Row(dict(values), row.origin)


def is_repeatable(spec: DatasetSpec) -> bool:
    """Say whether what a data set holds depends on files alone, so that its token ids may be kept."""
    return spec.name not in _loaders and spec.name not in _preprocess


def register_info_files(paths: Iterable[str]) -> None:
    """Register the data sets that description files name; a file may be given again, its entries are then replaced.

    Raises:
        RegistryError: when a name is taken by something else.
        DataError: when a file cannot be understood.
    """
    for path in paths:
        from swift_core.data.dataset_info import read_dataset_info

        source = f"--custom_dataset_info {path}"
        for spec in read_dataset_info(Path(path).expanduser()):
            # Files for other programs name many public data sets: what they say beats the built-in table.
            known = spec.name in DATASETS and DATASETS.get(spec.name).source in (source, TABLE)
            DATASETS.register(spec, source=source, override=known)
