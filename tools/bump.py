#!/usr/bin/env python3
"""Set the version of all packages and of the pins between them, then refresh the lock.

Members pin one another compatibly (`swift-core~=0.2.0`), the meta-package pins exactly (`swift-core==0.2.0`).

Usage: python tools/bump.py VERSION [--root FOLDER] [--no-lock]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from install import find_uv

VERSION = re.compile(r"\d+\.\d+\.\d+(?:(?:a|b|rc)\d+|\.dev\d+)?")
VERSION_LINE = re.compile(r'^version = "[^"]*"$', re.MULTILINE)


def set_version(text: str, version: str, dists: list[str]) -> str:
    """Return a pyproject.toml text with its own version and its pins of `dists` set.

    Raises:
        ValueError: when the text has no static version line.
    """
    changed, count = VERSION_LINE.subn(f'version = "{version}"', text, count=1)
    if count == 0:
        raise ValueError('no line of the form: version = "..."')
    names = "|".join(re.escape(dist) for dist in dists)
    pin = re.compile(rf'"({names})(\[[^\]]*\])?(==|~=)[^"]*"')
    return pin.sub(lambda found: f'"{found[1]}{found[2] or ""}{found[3]}{version}"', changed)


def main(words: list[str]) -> int:
    """Write the version everywhere; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--no-lock", action="store_true", help="leave uv.lock as it is")
    options = parser.parse_args(words)
    if not VERSION.fullmatch(options.version):
        parser.error(f"{options.version!r} is not a version of the form 1.2.3, 1.2.3rc1 or 1.2.3.dev1")
    root: Path = options.root
    files = [root / "pyproject.toml", *sorted(root.glob("packages/*/pyproject.toml"))]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    dists = [str(tomllib.loads(text)["project"]["name"]) for text in texts.values()]
    for file, text in texts.items():
        file.write_text(set_version(text, options.version, dists), encoding="utf-8")
        print(f"{file.relative_to(root)}: {options.version}")
    if options.no_lock:
        return 0
    uv = find_uv()
    if uv is None:
        print("error: uv.lock still holds the old version (fix: run `make setup`, then `uv lock`)", file=sys.stderr)
        return 1
    return subprocess.run([uv, "lock"], cwd=root, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
