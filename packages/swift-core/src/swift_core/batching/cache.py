"""Encoding once: the token ids of a run from its data, from the cache of an earlier run, or from folders exported before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from swift_core.batching.encode import Encoder, EncodeReport, nothing_left
from swift_core.batching.fingerprint import data_key, template_key
from swift_core.batching.folders import read_exported, read_part, write_part
from swift_core.batching.lazy import LazyDataset
from swift_core.batching.stream import EncodedStream
from swift_core.batching.tokens import TokenDataset, merge
from swift_core.batching.workers import encode_chunks
from swift_core.config.sections import DataSection, EncodingSection, ModelSection, TemplateSection
from swift_core.data.report import RowReport
from swift_core.data.sources import LoadedData, load_datasets
from swift_core.data.streaming import SampleStream
from swift_core.data.task_rows import Task
from swift_core.errors import DataError
from swift_core.hub.cache import cache_root, partial_folder, publish
from swift_core.protocols import EncodedSample, Sample
from swift_core.templates.chat import ChatTemplate

Policy = Literal["fail", "skip"]


@dataclass(slots=True)
class EncodedData:
    """What a run trains and evaluates on.

    Attributes:
        train: samples; a stream of them under `--streaming`.
        val: samples, maybe none.
        rows: what reading found.
        train_report, val_report: what encoding found; None where there is nothing yet (a stream, no evaluation data).
    """

    train: Sequence[EncodedSample] | EncodedStream
    val: Sequence[EncodedSample]
    rows: RowReport
    train_report: EncodeReport | None = None
    val_report: EncodeReport | None = None


@dataclass(slots=True)
class DataPlan:
    """The data of a run, found and perhaps read, and not encoded yet.

    Made before a model is fetched, so that a slip in a row is found first; rows stay unread when a cache may hold their
    token ids already.

    Args:
        data: what to read and how.
        loading: hub, offline mode and token.
        encoding: cache, processes, lazy encoding.
        plugins: files of code that take part in encoding.
        need_answer: whether every row must hold something to train.
        task: what the samples are for.
    """

    data: DataSection
    loading: ModelSection
    encoding: EncodingSection
    plugins: Sequence[str] = ()
    need_answer: bool = True
    task: Task = "causal_lm"
    _key: str | None = field(init=False, default=None)
    _loaded: LoadedData | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.encoding.cached_dataset or self.data.streaming:
            return
        if self.encoding.load_from_cache_file and not self.encoding.lazy_tokenize:
            self._key = data_key(self.data, self.loading, need_answer=self.need_answer, task=self.task)
        if self._key is None or not any(_tokens_root().glob(f"{self._key}-*")):
            self._loaded = self._load()

    def _load(self) -> LoadedData:
        return self._loaded or load_datasets(self.data, self.loading, need_answer=self.need_answer, task=self.task)

    @property
    def _policy(self) -> Policy:
        return "fail" if self.data.on_bad_row == "fail" else "skip"

    def encode(self, template: ChatTemplate, section: TemplateSection, *, max_length: int | None) -> EncodedData:
        """Return the encoded data.

        Raises:
            DataError: for bad rows, or when nothing is left to train on.
            TemplateError: for a row that cannot be rendered.
            ConfigError: when an exported folder was made for another template or tokenizer.
        """
        if self.encoding.cached_dataset:
            return self._exported(template, section, max_length)
        encoder = Encoder(template, section, max_length=max_length, on_bad_row=self._policy)
        if self.data.streaming:
            return self._streamed(encoder)
        if self.encoding.lazy_tokenize:
            loaded = self._load()
            train, val = LazyDataset(loaded.train, encoder), LazyDataset(loaded.val, encoder) if loaded.val else []
            return EncodedData(train, val, loaded.report)
        folder = None
        if self._key is not None:
            further = [Path(path).expanduser() for path in self.plugins]
            folder = _tokens_root() / f"{self._key}-{template_key(template, section, max_length, further=further)}"
        if folder is None or not _writable(folder.parent):
            return self._in_memory(encoder)
        return _opened(folder) or self._cached(folder, encoder, section)

    def _exported(self, template: ChatTemplate, section: TemplateSection, max_length: int | None) -> EncodedData:
        train, report, rows = read_exported(self.encoding.cached_dataset, "train", template, section, max_length)
        result = EncodedData(train, [], rows, report)
        if self.encoding.cached_val_dataset:
            result.val, result.val_report, more = read_exported(self.encoding.cached_val_dataset, "val", template, section, max_length)
            rows.notes += [note for note in more.notes if note not in rows.notes]
        return result

    def _streamed(self, encoder: Encoder) -> EncodedData:
        stream = SampleStream(self.data, self.loading, need_answer=self.need_answer, task=self.task)
        val: Sequence[EncodedSample] = []
        report = None
        if self.data.val_dataset:
            held = self.data.model_copy(update={"dataset": [], "streaming": False, "interleave_prob": []})
            loaded = load_datasets(held, self.loading, need_answer=self.need_answer, task=self.task)
            val, report = encode_part(loaded.val, encoder, processes=self.encoding.dataset_num_proc)
        return EncodedData(EncodedStream(stream, encoder), val, stream.report, val_report=report)

    def _in_memory(self, encoder: Encoder) -> EncodedData:
        loaded = self._load()
        train, report = encode_part(loaded.train, encoder, processes=self.encoding.dataset_num_proc)
        result = EncodedData(train, [], loaded.report, report)
        if loaded.val:
            result.val, result.val_report = encode_part(loaded.val, encoder, processes=self.encoding.dataset_num_proc)
        return result

    def _cached(self, folder: Path, encoder: Encoder, section: TemplateSection) -> EncodedData:
        with partial_folder(folder) as partial:
            found = _opened(folder)  # by another process, while this one waited for the lock
            if found is not None:
                return found
            if folder.exists():  # damaged
                shutil.rmtree(folder)
            loaded = self._load()
            reports: list[EncodeReport] = []
            for name, samples in (("train", loaded.train), ("val", loaded.val)):
                if samples:
                    report = write_part(partial / name, samples, loaded.report, encoder, section, processes=self.encoding.dataset_num_proc)
                    if report is None:
                        return self._in_memory(encoder)
                    reports.append(report)
            publish(partial, folder)
        result = _read(folder)
        result.rows = loaded.report
        result.train_report, result.val_report = [*reports, None][:2]
        return result


def load_or_encode(
    data: DataSection,
    loading: ModelSection,
    encoding: EncodingSection,
    template: ChatTemplate,
    section: TemplateSection,
    *,
    max_length: int | None,
    plugins: Sequence[str] = (),
) -> EncodedData:
    """Return the encoded data of a run; `DataPlan` does the same in two steps, with the data found before the template is there.

    Raises:
        SwiftError: as `DataPlan` and `DataPlan.encode` say.
    """
    return DataPlan(data, loading, encoding, plugins).encode(template, section, max_length=max_length)


def encode_part(samples: Sequence[Sample], encoder: Encoder, *, processes: int = 1) -> tuple[Sequence[EncodedSample], EncodeReport]:
    """Return samples encoded, as flat arrays where these can hold them and as a list elsewhere, and the report.

    Raises:
        TemplateError: for a row that cannot be rendered, as the encoder's policy says.
        DataError: when nothing that can be trained is left.
    """
    report = EncodeReport(max_length=encoder.max_length)
    blocks: list[dict[str, Any]] = []
    listed: list[EncodedSample] | None = None
    for chunk in encode_chunks(samples, encoder, processes=processes):
        report.add(chunk.report)
        if chunk.arrays is not None and listed is None:
            blocks.append(chunk.arrays)
            continue
        if listed is None:
            listed = list(TokenDataset(merge(blocks)))
        listed += chunk.samples or TokenDataset(chunk.arrays)
    if samples and not report.kept:
        raise nothing_left(samples, report)
    return (listed if listed is not None else TokenDataset(merge(blocks))), report


def _tokens_root() -> Path:
    return cache_root() / "tokens"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _opened(folder: Path) -> EncodedData | None:
    """Return what a cache folder holds, or None when it is not there or damaged."""
    if not folder.is_dir():
        return None
    try:
        found = _read(folder)
    except (DataError, OSError, ValueError, LookupError, TypeError):
        return None
    found.rows.note(f"token ids are taken from the cache ({folder}); --load_from_cache_file false encodes anew")
    return found


def _read(folder: Path) -> EncodedData:
    train, report, rows = read_part(folder / "train")
    if not (folder / "val").is_dir():
        return EncodedData(train, [], rows, report)
    val, val_report, _ = read_part(folder / "val")
    return EncodedData(train, val, rows, report, val_report)
