"""Which files of a data set folder hold which subset and split, by the rules of the `datasets` library."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from swift_core.data.rows import suffix_of
from swift_core.errors import DataError


@dataclass(frozen=True, slots=True)
class SubsetFiles:
    """The files of one subset.

    Attributes:
        paths: files of the wanted splits, in order.
        left_out: data files of the folder that belong to no split of this subset.
    """

    paths: tuple[Path, ...]
    left_out: tuple[Path, ...]


def subset_names(folder: Path, wanted: Sequence[str]) -> list[str]:
    """Return the subsets to read: those wanted, or the default.

    Args:
        folder: data set folder.
        wanted: names; empty takes the only subset or the one called or marked default, `("all",)` every one.

    Raises:
        DataError: when a subset is not there, or none is named and there is no default.
    """
    if not any(suffix_of(path) for path in folder.rglob("*")):
        raise DataError(f"{folder} holds no data files", fix="put .jsonl, .json, .csv, .parquet or .txt files there")
    try:
        present = datasets.get_dataset_config_names(str(folder))
        default = datasets.get_dataset_default_config_name(str(folder))
    except Exception as error:  # the library raises many kinds for what it cannot make out
        raise _unreadable(folder, error) from error
    if tuple(wanted) == ("all",) and "all" not in present:
        return present
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(f"{folder} has no subset {', '.join(map(repr, missing))}", fix=f"choose from: {', '.join(present)}")
    if wanted:
        return list(wanted)
    if default is None and len(present) > 1:
        raise DataError(
            f"{folder} has {len(present)} subsets and no default",
            fix=f"write NAME:{present[0]}, several as NAME:a/b, or NAME:all; there are: {', '.join(present)}",
        )
    return [default or present[0]]


def subset_files(folder: Path, subset: str, splits: Sequence[str]) -> SubsetFiles:
    """Return the files of a subset.

    Args:
        folder: data set folder.
        subset: one name that `subset_names` returned.
        splits: wanted splits; of these, all that exist are read. A subset with a single split gives that one.

    Raises:
        DataError: when none of the splits exists, or a file is not a plain local one.
    """
    try:
        with tempfile.TemporaryDirectory() as cache:
            builder = datasets.load_dataset_builder(str(folder), name=subset, cache_dir=cache)
    except Exception as error:  # as above
        raise _unreadable(folder, error) from error
    present: dict[str, list[str]] = {
        str(split): [str(file) for file in found] for split, found in (builder.config.data_files or {}).items()
    }
    chosen = [split for split in splits if split in present] or (list(present) if len(present) == 1 else [])
    if not chosen:
        raise DataError(
            f"{folder} has no split {' or '.join(splits)} in subset {subset!r}; it has {', '.join(present)}",
            fix="name the files themselves",
        )
    paths = tuple(Path(file) for split in chosen for file in present[split])
    odd = [str(path) for path in paths if not path.is_file()]
    if odd:
        raise DataError(f"{odd[0]} is inside an archive or on the network", fix="unpack it and name the file")
    known = {Path(file).resolve() for found in present.values() for file in found}
    others = tuple(path for path in sorted(folder.rglob("*")) if suffix_of(path) and path.is_file() and path.resolve() not in known)
    return SubsetFiles(paths, _visible(folder, others))


def _visible(folder: Path, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(path for path in paths if not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts))


def _unreadable(folder: Path, error: Exception) -> DataError:
    first = str(error).strip().split("\n")[0]
    return DataError(
        f"cannot tell which files of {folder} to read: {first}", fix="name the data files themselves, such as FOLDER/train.jsonl"
    )
