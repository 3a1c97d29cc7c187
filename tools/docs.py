#!/usr/bin/env python3
"""Build the documentation: the hand-written pages of `docs/en` and `docs/zh` with the reference pages that the code makes.

    python tools/docs.py build              # both languages to build/docs/html, with no connection
    python tools/docs.py reference FOLDER   # the reference pages alone, to FOLDER/en and FOLDER/zh

Each language is a site of its own with a search of its own; a link in the side bar leads to the same page in the other one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from docs_reference import LANGUAGES, pages
from layout import ROOT

DOCS = ROOT / "docs"
# Languages that include code from here: `{literalinclude} /examples/...`.
INCLUDED = ("examples",)


def main() -> int:
    """Do what the command line says and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("build", "reference"))
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "docs")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    if options.action == "reference":
        for language in LANGUAGES:
            write_reference(folder / language, language)
        return 0
    return build(folder)


def write_reference(folder: Path, language: str) -> None:
    """Write the reference pages of a language into a folder."""
    for name, text in pages(language).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def build(folder: Path) -> int:
    """Build both sites below a folder and return the exit code of the first that failed; any warning is a failure."""
    if importlib.util.find_spec("sphinx") is None:
        print("Sphinx is not installed (fix: uv sync --group docs)", file=sys.stderr)
        return 1
    sources = folder / "source"
    shutil.rmtree(folder, ignore_errors=True)
    for language in LANGUAGES:
        source = sources / language
        shutil.copytree(DOCS / language, source)
        for name in INCLUDED:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.md", "*.ipynb", "__pycache__"))
        write_reference(source / "reference", language)
        target = folder / "html" / language
        command = [
            sys.executable,
            "-m",
            "sphinx",
            "-b",
            "html",
            "-q",
            "-W",
            "--keep-going",
            "-c",
            str(DOCS),
            "-D",
            f"language={locale(language)}",
        ]
        code = subprocess.run([*command, str(source), str(target)], env={**os.environ, "DOCS_LANGUAGE": language}, check=False).returncode
        if code:
            return code
        print(f"{language}: {sum(1 for _ in target.rglob('*.html'))} pages in {target}")
    (folder / "html" / "index.html").write_text('<meta http-equiv="refresh" content="0; url=en/index.html">\n', encoding="utf-8")
    return 0


def locale(language: str) -> str:
    """Return what Sphinx calls a language."""
    return {"zh": "zh_CN"}.get(language, language)


if __name__ == "__main__":
    sys.exit(main())
