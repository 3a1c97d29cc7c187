"""`swift rerun RUN_DIR`: start the run of a folder once more, with the same settings or a few others."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from swift_core.config.command import MASK
from swift_core.config.load import ARGS_FILE
from swift_core.errors import ConfigError, NotFoundError, Problem

_HELP = """usage: swift rerun RUN_DIR [--flag value ...]

Start the run of a folder once more: the command and settings are those of its args.json, flags change some of them.
The new run gets a folder of its own beside the old one. To go on with an interrupted run, use --resume_from_checkpoint.
"""


def main(argv: list[str]) -> int:
    """Run `swift rerun` with the words after it and return the exit code.

    Raises:
        ConfigError: when no folder is named.
        NotFoundError: when the folder holds no settings of a run.
    """
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_HELP)
        return 0 if argv else 2
    if argv[0].startswith("-"):
        raise ConfigError([Problem("RUN_DIR", f"comes first, not {argv[0]!r}", "swift rerun RUN_DIR --flag value")])
    from swift_core.cli.main import main as run

    command, values, hidden = read_run(Path(argv[0]))
    for name in hidden:
        sys.stderr.write(f"note: --{name} is a secret that the run folder does not hold; give it again where it is needed\n")
    with tempfile.TemporaryDirectory() as folder:
        # A file, since workers of other processes read it as well.
        file = Path(folder) / "rerun.json"
        file.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        return run([command, str(file), *argv[1:]])


def read_run(run_dir: Path) -> tuple[str, dict[str, object], list[str]]:
    """Return command, settings, and the names of settings that are secret and not known, of a run or checkpoint folder.

    Raises:
        NotFoundError: when the folder holds no settings of a run.
    """
    folder = run_dir.expanduser()
    file = folder / ARGS_FILE
    if not file.is_file():
        raise NotFoundError(f"{str(run_dir)!r} holds no {ARGS_FILE}", fix="give the folder of a run, such as output/v0-20260101-120000")
    values = json.loads(file.read_text(encoding="utf-8"))
    command = str(values.pop("command"))
    values.pop("swift_version", None)
    hidden = [name for name, value in values.items() if value == MASK]
    # The run folder stands in its own args.json; the new one gets a name of its own beside it.
    values.update(output_dir=str(Path(values["output_dir"]).parent), add_version=True, resume_from_checkpoint=None)
    return command, {name: value for name, value in values.items() if value is not None and name not in hidden}, hidden
