"""What a job runs: the `swift` command in this process, its exit code left in a file.

Usage: python -m swift_ui.child EXIT_FILE COMMAND [FILE ...]
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from swift_core.cli.main import main


def run(words: Sequence[str]) -> int:
    """Run the command and return its exit code, which the file named first then holds too."""
    exit_file, argv = Path(words[0]), list(words[1:])
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1 if error.code else 0
    except BaseException:  # noqa: BLE001  whatever ended the command, its code must be on record; the traceback is in the log
        traceback.print_exc()
        code = 1
    aside = exit_file.with_suffix(".tmp")
    aside.write_text(json.dumps({"exit_code": code}), encoding="utf-8")
    aside.replace(exit_file)
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
