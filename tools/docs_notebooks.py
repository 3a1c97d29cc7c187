#!/usr/bin/env python3
"""Run the notebooks of `examples/notebooks` from top to bottom, each in an empty folder, without Jupyter.

    python tools/docs_notebooks.py [--model FOLDER] [NAME ...]

A cell runs as Python; a line that starts with `!` runs in a shell, with `{name}` replaced by the variable of that name, as IPython
does it. A shell line that fails ends the notebook. `--model` puts another model in the place of the one that the notebooks name.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from layout import ROOT

FOLDER = ROOT / "examples" / "notebooks"


def code_cells(notebook: Path) -> Iterator[str]:
    """Yield the code cells of a notebook."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            yield "".join(cell["source"])


def joined(cell: str) -> str:
    """Return a cell with each shell line that goes on behind a backslash as one line."""
    return re.sub(r"^!(?:.*\\\n)+", lambda found: re.sub(r"\\\n\s*", "", found[0]), cell, flags=re.MULTILINE)


def as_python(cell: str, model: str | None = None) -> str:
    """Return a cell as plain Python: shell lines become calls of `shell`."""
    lines = [f"shell({line[1:]!r}, globals())" if line.startswith("!") else line for line in joined(cell).splitlines()]
    text = "\n".join(lines)
    return re.sub(r'^MODEL = "[^"]*"', f"MODEL = {model!r}", text, flags=re.MULTILINE) if model else text


def shell(line: str, names: dict[str, Any]) -> None:
    """Run a line, with variables filled in.

    Raises:
        CalledProcessError: when it fails.
    """
    filled = re.sub(r"\{([A-Za-z_]\w*)\}", lambda found: str(names.get(found[1], found[0])), line)
    print(f"$ {filled}", flush=True)
    subprocess.run(["bash", "-c", filled], check=True)


def run(notebook: Path, model: str | None) -> None:
    """Run a notebook in the working folder."""
    names: dict[str, Any] = {"__name__": "__main__", "shell": shell}
    for number, cell in enumerate(code_cells(notebook), 1):
        exec(compile(as_python(cell, model), f"{notebook.name}, code cell {number}", "exec"), names)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line names, each in a process of its own, and return 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of file names; default: all")
    parser.add_argument("--model", help="folder or id to use in every notebook")
    parser.add_argument("--here", action="store_true", help="run one notebook in the working folder and this process")
    options = parser.parse_args(argv)
    found = [path for path in sorted(FOLDER.glob("*.ipynb")) if not options.names or any(name in path.name for name in options.names)]
    if options.here:
        run(found[0], options.model)
        return 0
    failed: list[str] = []
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for notebook in found:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, __file__, "--here", notebook.name, *(["--model", options.model] if options.model else [])]
            code = subprocess.run(words, cwd=folder, env={**os.environ, "PATH": paths}, check=False).returncode
        print(f"== {notebook.name}: exit code {code}, {time.monotonic() - started:.0f} s", flush=True)
        failed += [notebook.name] if code else []
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
