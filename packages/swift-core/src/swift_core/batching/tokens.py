"""Encoded samples as flat arrays, in memory or mapped from files, so that a data set of any size costs little to hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from swift_core.errors import DataError
from swift_core.protocols import EncodedSample
from swift_core.templates.mask import IGNORED

_DTYPES = {
    "ids": np.int32,  # tokens of all samples, one after the other
    "ends": np.int64,  # where each sample ends in `ids`
    "spans": np.int32,  # [start, stop) of the trained stretches of each sample, counted from its first token
    "span_ends": np.int64,  # where the stretches of each sample end in `spans`
    "trained": np.int32,  # tokens of each sample that carry loss once shifted
    "further": np.uint8,  # origin of each sample and, as JSON after a zero byte, what else it has
    "further_ends": np.int64,
}
_FLAT = {"ids": "ends", "spans": "span_ends", "further": "further_ends"}

Arrays = Mapping[str, NDArray[Any]]


def is_plain(sample: EncodedSample) -> bool:
    """Say whether flat arrays can hold a sample: no media, no companions, labels that are its tokens."""
    if sample.model_inputs or sample.rejected is not None or sample.positives or sample.negatives:
        return False
    return isinstance(sample.label, bool | int | float | str | list | None)


def pack(samples: Sequence[EncodedSample]) -> dict[str, NDArray[Any]]:
    """Return samples as flat arrays; `is_plain` must hold for each."""
    ends = np.cumsum([len(sample) for sample in samples], dtype=np.int64)
    starts = ends - np.array([len(sample) for sample in samples], dtype=np.int64)
    ids = _flat([sample.input_ids for sample in samples])
    labels = _flat([sample.labels for sample in samples])
    on = labels != IGNORED
    # Where a trained stretch starts or ends; a sample starts and ends its own, whatever its neighbours do.
    first, last = on.copy(), on.copy()
    first[1:] &= ~on[:-1]
    last[:-1] &= ~on[1:]
    inner = starts[starts < ends]
    first[inner] = on[inner]
    last[ends[starts < ends] - 1] = on[ends[starts < ends] - 1]
    opened, closed = np.flatnonzero(first), np.flatnonzero(last) + 1
    owner = np.searchsorted(ends, opened, side="right")
    odd = set(np.searchsorted(ends, np.flatnonzero(on & (labels != ids)), side="right").tolist())
    further = [_further(sample, sample.labels if number in odd else None) for number, sample in enumerate(samples)]
    return {
        "ids": ids.astype(np.int32),
        "ends": ends,
        "spans": (np.stack([opened, closed], axis=1) - starts[owner, None]).astype(np.int32).reshape(-1),
        "span_ends": 2 * np.cumsum(np.bincount(owner, minlength=len(samples)), dtype=np.int64),
        "trained": np.array([sample.trained_tokens for sample in samples], dtype=np.int32),
        "further": np.frombuffer(b"".join(further), dtype=np.uint8),
        "further_ends": np.cumsum([len(text) for text in further], dtype=np.int64),
    }


def _flat(lists: Sequence[list[int]]) -> NDArray[np.int64]:
    return np.array(list(chain.from_iterable(lists)), dtype=np.int64)


def _further(sample: EncodedSample, labels: list[int] | None) -> bytes:
    if labels is None and sample.channel is None and sample.label is None and sample.loss_scale is None:
        return sample.origin.encode("utf-8", "surrogateescape")
    scale = None if sample.loss_scale is None else [[len(list(run)), value] for value, run in groupby(sample.loss_scale)]
    values = {"channel": sample.channel, "label": sample.label, "loss_scale": scale, "labels": labels}
    present = {name: value for name, value in values.items() if value is not None}
    text = sample.origin + ("\0" + json.dumps(present, ensure_ascii=False) if present else "")
    return text.encode("utf-8", "surrogateescape")


class TokenDataset(Sequence[EncodedSample]):
    """Encoded samples in flat arrays.

    Args:
        arrays: as `pack` gives them, in memory.
        folder: where they are mapped from instead.

    Attributes:
        lengths: tokens of each sample.
        trained_tokens: tokens of each sample that carry loss once shifted.
    """

    def __init__(self, arrays: Arrays | None = None, *, folder: Path | None = None) -> None:
        self.folder = folder
        self._arrays: Arrays = open_arrays(folder) if arrays is None and folder is not None else arrays or pack([])
        self.lengths: NDArray[np.int64] = np.diff(self._arrays["ends"], prepend=0)
        self.trained_tokens: NDArray[np.int32] = self._arrays["trained"]

    @classmethod
    def of(cls, samples: Sequence[EncodedSample]) -> TokenDataset:
        """Return samples in memory."""
        return cls(pack(samples))

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker maps the files itself: sending a mapped array would copy all of it.
        return (_reopen, (self.folder, None if self.folder is not None else dict(self._arrays)))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> EncodedSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedSample]: ...

    def __getitem__(self, index: int | slice) -> EncodedSample | list[EncodedSample]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._sample(index)

    def _sample(self, index: int) -> EncodedSample:
        ids: list[int] = self._part("ids", index).tolist()
        labels = [IGNORED] * len(ids)
        borders: list[int] = self._part("spans", index).tolist()
        for start, stop in zip(borders[::2], borders[1::2], strict=True):
            labels[start:stop] = ids[start:stop]
        text = self._part("further", index).tobytes().decode("utf-8", "surrogateescape")
        origin, mark, rest = text.partition("\0")
        sample = EncodedSample(ids, labels, origin)
        if mark:
            values = json.loads(rest)
            sample.channel, sample.label = values.get("channel"), values.get("label")
            sample.labels = values.get("labels", labels)
            if "loss_scale" in values:
                sample.loss_scale = [value for count, value in values["loss_scale"] for _ in range(count)]
        return sample

    def _part(self, name: str, index: int) -> NDArray[Any]:
        ends = self._arrays[_FLAT[name]]
        return self._arrays[name][int(ends[index - 1]) if index else 0 : int(ends[index])]

    def __iter__(self) -> Iterator[EncodedSample]:
        return (self._sample(index) for index in range(len(self)))


def _reopen(folder: Path | None, arrays: Arrays | None) -> TokenDataset:
    return TokenDataset(arrays, folder=folder)


def merge(blocks: Iterable[Arrays]) -> dict[str, NDArray[Any]]:
    """Return blocks that `pack` gave as one, in order."""
    parts = list(blocks) or [pack([])]
    merged = {name: np.concatenate([part[name] for part in parts]) for name in _DTYPES if name not in _FLAT.values()}
    for flat, ends in _FLAT.items():
        starts = np.cumsum([0, *(len(part[flat]) for part in parts[:-1])])
        merged[ends] = np.concatenate([part[ends] + start for part, start in zip(parts, starts, strict=True)])
    return merged


@dataclass(slots=True)
class ArrayWriter:
    """Writes blocks to the files of a folder without holding them."""

    folder: Path
    _files: dict[str, IO[bytes]]
    _sizes: dict[str, int]

    @classmethod
    def open(cls, folder: Path) -> ArrayWriter:
        """Return a writer into an empty folder that exists."""
        return cls(folder, {name: (folder / f"{name}.bin").open("wb") for name in _DTYPES}, dict.fromkeys(_FLAT, 0))

    def add(self, block: Arrays) -> None:
        """Append a block that `pack` gave."""
        for name, dtype in _DTYPES.items():
            values = block[name]
            flat = next((flat for flat, ends in _FLAT.items() if ends == name), None)
            shifted = values + self._sizes[flat] if flat else values
            self._files[name].write(np.ascontiguousarray(shifted, dtype=dtype).tobytes())
        for flat in _FLAT:
            self._sizes[flat] += len(block[flat])

    def close(self) -> None:
        """Finish the files."""
        for file in self._files.values():
            file.close()


def open_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a folder, mapped from its files.

    Raises:
        DataError: when a file is absent or cut short.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype in _DTYPES.items():
        path = folder / f"{name}.bin"
        if not path.is_file() or path.stat().st_size % np.dtype(dtype).itemsize:
            raise DataError(f"{path} is {'damaged' if path.is_file() else 'not there'}", fix=f"delete {folder} and encode again")
        empty = not path.stat().st_size
        arrays[name] = np.empty(0, dtype) if empty else np.memmap(path, dtype=dtype, mode="r")
    for flat, ends in _FLAT.items():
        if len(arrays[flat]) != (int(arrays[ends][-1]) if len(arrays[ends]) else 0):
            raise DataError(f"{folder / flat}.bin is cut short", fix=f"delete {folder} and encode again")
    return arrays
