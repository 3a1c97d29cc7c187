"""Folders of token ids: arrays and a manifest for each part of a data set, written once and mapped when read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from swift_core.batching.encode import Encoder, EncodeReport, nothing_left
from swift_core.batching.fingerprint import FORMAT, tokenizer_key
from swift_core.batching.tokens import ArrayWriter, TokenDataset
from swift_core.batching.workers import encode_chunks
from swift_core.config.sections import TemplateSection
from swift_core.data.report import BadRow, RowReport
from swift_core.errors import ConfigError, DataError, Problem
from swift_core.protocols import EncodedSample, Sample
from swift_core.templates.chat import ChatTemplate

MANIFEST = "manifest.json"


def write_part(
    folder: Path, samples: Sequence[Sample], rows: RowReport, encoder: Encoder, section: TemplateSection, *, processes: int = 1
) -> EncodeReport | None:
    """Encode samples into a folder, which is made.

    Returns:
        what became of the samples; None when flat arrays cannot hold one of them, and the folder is of no use.

    Raises:
        TemplateError: for a row that cannot be rendered, as the encoder's policy says.
        DataError: when nothing that can be trained is left.
    """
    folder.mkdir()
    writer = ArrayWriter.open(folder)
    report = EncodeReport(max_length=encoder.max_length)
    try:
        for chunk in encode_chunks(samples, encoder, processes=processes):
            if chunk.arrays is None:
                return None
            report.add(chunk.report)
            writer.add(chunk.arrays)
    finally:
        writer.close()
    if not report.kept:
        raise nothing_left(samples, report)
    text = json.dumps(_manifest(report, rows, encoder, section), ensure_ascii=True, default=repr)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return report


def _manifest(report: EncodeReport, rows: RowReport, encoder: Encoder, section: TemplateSection) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "samples": report.kept,
        "tokens": report.tokens,
        "settings": _settings(encoder.template, section, encoder.max_length),
        "tokenizer": tokenizer_key(encoder.template.tokenizer),
        "report": report.as_json(),
        "rows": {
            "policy": rows.policy,
            "limit": rows.limit,
            "read": rows.read,
            "used": rows.used,
            "bad": [[row.origin, row.reason, row.raw, row.fix] for row in rows.bad],
            "formats": rows.formats,
            "columns": list(rows.columns),
            "notes": rows.notes,
        },
    }


def _settings(template: ChatTemplate, section: TemplateSection, max_length: int | None) -> dict[str, Any]:
    values = {**section.model_dump(mode="json"), "system": template.system, "max_length": max_length}
    return json.loads(json.dumps(values, default=str))


def _rows(values: dict[str, Any]) -> RowReport:
    return RowReport(
        policy=values["policy"],
        limit=values["limit"],
        read=values["read"],
        used=values["used"],
        bad=[BadRow(*row) for row in values["bad"]],
        formats=Counter(values["formats"]),
        columns=dict.fromkeys(values["columns"]),
        notes=list(values["notes"]),
    )


def read_part(folder: Path) -> tuple[TokenDataset, EncodeReport, RowReport]:
    """Return the samples of a folder that `write_parts` made, mapped from its files, with its reports.

    Raises:
        DataError: when a file is absent or damaged.
    """
    manifest = read_manifest(folder)
    samples = TokenDataset(folder=folder)
    if len(samples) != manifest["samples"]:
        raise DataError(f"{folder} holds {len(samples)} samples and should hold {manifest['samples']}", fix="make it again")
    report = EncodeReport.from_json(manifest["report"])
    report.lengths = samples.lengths.tolist()
    return samples, report, _rows(manifest["rows"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what a folder of token ids says of itself.

    Raises:
        DataError: when it is not such a folder, or of another version.
    """
    path = folder / MANIFEST
    fix = "make it with `swift export --to_cached_dataset true`"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no folder of token ids: {error}", fix=fix) from error
    if values.get("format") != FORMAT:
        raise DataError(f"{folder} was written by another version of swift", fix=fix)
    return values


class Joined(Sequence[EncodedSample]):
    """Several folders of token ids as one data set.

    Attributes:
        lengths, trained_tokens: as in `TokenDataset`.
    """

    def __init__(self, parts: Sequence[TokenDataset]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.lengths: NDArray[np.int64] = np.concatenate([part.lengths for part in parts])
        self.trained_tokens: NDArray[np.int32] = np.concatenate([part.trained_tokens for part in parts])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part][index - (int(self._ends[part - 1]) if part else 0)]


def read_exported(
    paths: Sequence[str], part: str, template: ChatTemplate, section: TemplateSection, max_length: int | None
) -> tuple[Sequence[EncodedSample], EncodeReport, RowReport]:
    """Return the samples of exported folders, one after the other, with their reports.

    Args:
        paths: folders of `swift export --to_cached_dataset`, or the part of one of them.
        part: `train` or `val`.
        template: in use; must be the one they were made with.
        section: its settings, which must be the same as well.
        max_length: limit in tokens, after defaults.

    Raises:
        ConfigError: when a folder was made for another tokenizer, template or limit.
        DataError: when a folder is damaged.
    """
    flag = "--cached_dataset" if part == "train" else "--cached_val_dataset"
    folders = [_part_folder(path, part) for path in paths]
    wanted = _settings(template, section, max_length)
    problems: list[Problem] = []
    for folder in folders:
        manifest = read_manifest(folder)
        differing = {name: value for name, value in manifest["settings"].items() if wanted.get(name) != value}
        if manifest["tokenizer"] != tokenizer_key(template.tokenizer):
            fix = "export it again with this --model and --template, or train the model it was made for"
            problems.append(Problem(f"{flag} {folder}", "was made with another tokenizer or chat template", fix))
        elif differing:
            what = "; ".join(f"--{name} {value!r} there, {wanted.get(name)!r} here" for name, value in differing.items())
            problems.append(
                Problem(f"{flag} {folder}", f"was made with other settings: {what}", "give the same settings, or export it again")
            )
    if problems:
        raise ConfigError(problems)
    read = [read_part(folder) for folder in folders]
    samples, report, rows = read[0]
    for _, further, more in read[1:]:
        report.add(further)
        rows.read, rows.used = rows.read + more.read, rows.used + more.used
        rows.formats.update(more.formats)
    rows.note(f"token ids are taken from {', '.join(map(str, folders))}")
    return (samples if len(read) == 1 else Joined([each for each, _, _ in read])), report, rows


def _part_folder(path: str, part: str) -> Path:
    folder = Path(path).expanduser()
    inside = folder / part
    return inside if (inside / MANIFEST).is_file() else folder
