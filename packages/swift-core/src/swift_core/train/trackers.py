"""Experiment trackers that are libraries of their own: Weights & Biases and SwanLab."""

from __future__ import annotations

import inspect
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swift_core.config.load import ARGS_FILE
from swift_core.errors import MissingDependencyError, TrainingError


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a log line under `train/` and `eval/`."""
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float) and key not in ("step", "total_steps")}
    return {f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}": value for key, value in numbers.items()}


def _run_id(run_dir: Path) -> str:
    """Return the name by which trackers know the run of a folder, the same when it is resumed."""
    file = run_dir / "tracker_id.txt"
    if not file.is_file():
        file.write_text(secrets.token_hex(8), encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def _settings(run_dir: Path) -> dict[str, Any]:
    file = run_dir / ARGS_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class WandbSink:
    """Sends log lines to Weights & Biases; `WANDB_MODE=offline` keeps them in the run folder.

    A run folder is one run there: resuming goes on with it.

    Raises:
        MissingDependencyError: when wandb is not installed.
        TrainingError: when the run cannot be opened there.
    """

    def __init__(self, run_dir: Path, *, name: str | None, project: str | None) -> None:
        try:
            import wandb
            from wandb.errors import Error as WandbError
        except ImportError as error:
            raise MissingDependencyError("wandb", needed_for="--report_to wandb", install="swift-core[wandb]") from error
        try:
            self._run: Any = wandb.init(
                project=project or "swift",
                name=name or run_dir.name,
                id=_run_id(run_dir),
                resume="allow",
                dir=str(run_dir),
                config=_settings(run_dir),
            )
        except WandbError as error:
            fix = "log in with `wandb login`, set WANDB_MODE=offline, or leave wandb out of --report_to"
            raise TrainingError(f"Weights & Biases does not open a run: {error}", fix=fix) from error

    def log(self, values: dict[str, Any]) -> None:
        """Send the numbers of a line."""
        self._run.log(scalars(values), step=values["step"])

    def table(self, name: str, rows: Sequence[dict[str, Any]], *, step: int) -> None:
        """Send rows as a table."""
        import wandb

        names: list[Any] = list(rows[0])
        self._run.log({name: wandb.Table(columns=names, data=[[row.get(key) for key in names] for row in rows])}, step=step)

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


class SwanLabSink:
    """Sends log lines to SwanLab; `SWANLAB_MODE=local` or `offline` keeps them on this machine.

    A run folder is one run there: resuming goes on with it.

    Raises:
        MissingDependencyError: when swanlab is not installed.
        TrainingError: when the run cannot be opened there.
    """

    def __init__(self, run_dir: Path, *, name: str | None, project: str | None) -> None:
        try:
            import swanlab  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError("swanlab", needed_for="--report_to swanlab", install="swift-core[swanlab]") from error
        if "id" not in inspect.signature(swanlab.init).parameters:
            raise MissingDependencyError("swanlab 0.10", needed_for="--report_to swanlab", install="swanlab>=0.10")
        try:
            self._run: Any = swanlab.init(
                project=project or "swift",
                name=name or run_dir.name,
                id=_run_id(run_dir),
                resume="allow",
                log_dir=str(run_dir / "swanlog"),
                config=_settings(run_dir),
            )
        except (ValueError, RuntimeError, OSError) as error:
            fix = "log in with `swanlab login`, set SWANLAB_MODE=offline, or leave swanlab out of --report_to"
            raise TrainingError(f"SwanLab does not open a run: {error}", fix=fix) from error

    def log(self, values: dict[str, Any]) -> None:
        """Send the numbers of a line."""
        self._run.log(scalars(values), step=values["step"])

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()
