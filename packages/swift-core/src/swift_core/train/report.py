"""Where the numbers of a run go: logging.jsonl, TensorBoard and the terminal."""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from tqdm.auto import tqdm

from swift_core.config.sections import ReportSection
from swift_core.train.trackers import SwanLabSink, WandbSink, scalars

logger = logging.getLogger(__name__)

LOG_FILE = "logging.jsonl"


class Sink(Protocol):
    """Takes log lines."""

    def log(self, values: dict[str, Any]) -> None:
        """Take one line; `values["step"]` is the optimizer step.

        Raises:
            OSError: when no more lines can be taken.
        """
        ...

    def close(self) -> None:
        """Write out what is held back."""
        ...


@runtime_checkable
class TableSink(Protocol):
    """A sink that shows tables too."""

    def table(self, name: str, rows: Sequence[dict[str, Any]], *, step: int) -> None:
        """Take rows with the same columns."""
        ...


class JsonlSink:
    """Appends one JSON object a line. After a resume, lines past the resumed step are gone: they will come again.

    What a full disk does not take is held back until there is room, so that no line is lost or cut.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        kept = [line for line in _lines(path) if json.loads(line).get("step", 0) <= resumed_step] if resumed_step else []
        aside = path.with_suffix(".new")
        aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        aside.replace(path)
        self._file = path.open("ab", buffering=0)
        self._held = b""
        self._complained = False

    def log(self, values: dict[str, Any]) -> None:
        """Append a line; numbers that JSON does not have become null."""
        plain = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}
        self._held += (json.dumps(plain, ensure_ascii=False) + "\n").encode()
        self._write()

    def _write(self) -> None:
        try:
            while self._held:
                self._held = self._held[self._file.write(self._held) :]
        except OSError as error:
            if not self._complained:
                logger.warning("%s cannot be written for now, its lines are held back: %s", self._file.name, error)
            self._complained = True

    def close(self) -> None:
        """Close the file."""
        self._write()
        if self._held:
            logger.warning("%s lacks its last %s lines: the disk has no room for them", self._file.name, self._held.count(b"\n"))
        self._file.close()


def _lines(path: Path) -> list[str]:
    """Return the whole lines of a log; a line that a killed process left half written is no line."""
    if not path.is_file():
        return []
    found: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append(line)
    return found


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's logging.jsonl."""
    return [json.loads(line) for line in _lines(run_dir / LOG_FILE)]


class TensorBoardSink:
    """Writes scalars for TensorBoard."""

    def __init__(self, folder: Path, *, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second to import, and not every run wants it

        _keep_in_order(folder)
        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else None)

    def log(self, values: dict[str, Any]) -> None:
        """Write every number under `train/` or `eval/`."""
        for key, value in scalars(values).items():
            self._writer.add_scalar(key, value, values["step"])
        self._writer.flush()  # a run that is killed loses no line

    def table(self, name: str, rows: Sequence[dict[str, Any]], *, step: int) -> None:
        """Write rows as a text with a line for each."""
        names = list(rows[0])
        lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
        lines += ["| " + " | ".join(_cell(row.get(key)) for key in names) + " |" for row in rows]
        self._writer.add_text(name, "\n".join(lines), step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", "<br>")


def _keep_in_order(folder: Path) -> None:
    """Rename event files that seem to come from the future: readers go by the time in the name, and a clock may have been set back."""
    now = int(time.time())
    for path in folder.glob("events.out.tfevents.*") if folder.is_dir() else ():
        head, written, rest = path.name.rpartition("tfevents.")[0], *path.name.rpartition("tfevents.")[2].partition(".")[::2]
        if written.isdigit() and int(written) >= now:
            path.rename(path.with_name(f"{head}tfevents.{now - 1:010d}.{written}.{rest}"))


class ConsoleSink:
    """A progress bar where there is a terminal, and log lines."""

    def __init__(self, total: int, *, done: int, bar: bool) -> None:
        self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True) if bar else None

    def advance(self) -> None:
        """Count an optimizer step."""
        if self._bar is not None:
            self._bar.update()

    def log(self, values: dict[str, Any]) -> None:
        """Print a line."""
        self.say(format_line(values))

    def say(self, text: str) -> None:
        """Print a text without breaking the bar."""
        if self._bar is not None:
            tqdm.write(text, file=sys.stderr)
        else:
            sys.stderr.write(text + "\n")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


_SHORT = {
    "loss": ("loss", ".4f"),
    "eval_loss": ("eval loss", ".4f"),
    "eval_token_accuracy": ("eval accuracy", ".3f"),
    "grad_norm": ("grad norm", ".3g"),
    "learning_rate": ("lr", ".3g"),
    "tokens_per_second": ("tokens/s", ".0f"),
    "mfu": ("mfu", ".1%"),
    "memory_gib": ("memory", ".2f"),
}

_UNSHOWN = ("eval_runtime", "eval_samples_per_second")


def format_line(values: dict[str, Any]) -> str:
    """Return a log line for people."""
    parts = [f"step {values['step']}/{values['total_steps']}" if "total_steps" in values else f"step {values['step']}"]
    if "epoch" in values:
        parts.append(f"epoch {values['epoch']:.2f}")
    parts += [
        f"{name} {values[key]:{form}}" + (" GiB" if key == "memory_gib" else "") for key, (name, form) in _SHORT.items() if key in values
    ]
    # Tasks measure what they like; their metrics are shown under their own names.
    parts += [
        f"eval {key.removeprefix('eval_')} {value:.4f}"
        for key, value in values.items()
        if key.startswith("eval_") and key not in _SHORT and key not in _UNSHOWN
    ]
    if "eta_seconds" in values:
        parts.append(f"eta {duration(values['eta_seconds'])}")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds as `1:02:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this process has used, in GiB: on its accelerator, or in RAM on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes / 2**20 if sys.platform != "darwin" else kibibytes / 2**30


class Report:
    """All sinks of a run. Only the main process has any."""

    def __init__(self, section: ReportSection, run_dir: Path, *, total: int, resumed_step: int, active: bool) -> None:
        self._console: ConsoleSink | None = None
        self._sinks: list[Sink] = []
        self._run_dir = run_dir
        if not active:
            return
        self._console = ConsoleSink(total, done=resumed_step, bar=sys.stderr.isatty() and not section.disable_tqdm)
        self._sinks = [JsonlSink(run_dir / LOG_FILE, resumed_step=resumed_step), self._console]
        if "tensorboard" in section.report_to:
            folder = Path(section.logging_dir) if section.logging_dir else run_dir / "runs"
            self._sinks.append(TensorBoardSink(folder / section.run_name if section.run_name else folder, resumed_step=resumed_step))
        for name, sink in (("wandb", WandbSink), ("swanlab", SwanLabSink)):
            if name in section.report_to:
                self._sinks.append(sink(run_dir, name=section.run_name, project=section.tracker_project))

    def log(self, values: dict[str, Any]) -> None:
        """Hand a line to every sink."""
        for sink in list(self._sinks):
            try:
                sink.log(values)
            except OSError as error:
                # Everything is in logging.jsonl; a run of days does not end because a second place for it is full.
                self._sinks.remove(sink)
                self.say(f"warning: {type(sink).__name__.removesuffix('Sink')} gets no more lines: {error}")

    def table(self, name: str, rows: Sequence[dict[str, Any]], *, step: int) -> None:
        """Hand rows, such as answers of the model, to the sinks that show tables."""
        for sink in self._sinks if rows else ():
            if isinstance(sink, TableSink):
                sink.table(name, rows, step=step)

    def advance(self) -> None:
        """Count an optimizer step."""
        if self._console is not None:
            self._console.advance()

    def say(self, text: str) -> None:
        """Print a text for people."""
        if self._console is not None:
            self._console.say(text)

    def plot(self) -> None:
        """Draw the curves of the run so far into its folder."""
        if self._console is None:
            return
        from swift_core.train.plot import plot_rewards, plot_run  # matplotlib takes half a second that no run should wait for at its start

        lines, images = read_log(self._run_dir), self._run_dir / "images"
        try:
            plot_run(lines, images / "loss.png", title=self._run_dir.name)
            plot_rewards(lines, images / "reward.png", title=self._run_dir.name)
        except OSError as error:
            self.say(f"warning: the curves are not drawn: {error}")

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
