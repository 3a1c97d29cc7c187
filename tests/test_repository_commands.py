"""Every `swift` line that the examples and the documents show is one that the installed commands understand."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from swift_core.cli.main import main
from swift_core.registry import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
# Pages in other languages have the same blocks (tests/test_docs.py).
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("packages/*/README.md"), *ROOT.glob("docs/en/**/*.md"), *ROOT.glob("examples/**/*.md")])
SCRIPTS = sorted(ROOT.glob("examples/**/*.sh"))
CONFIGS = sorted([*ROOT.glob("examples/**/*.yaml"), *ROOT.glob("examples/**/*.yml")])
FENCE = re.compile(r"^```(?:bash|shell|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def swift_lines(shell: str) -> Iterator[list[str]]:
    """Yield the words after `swift` of every line of a shell text that calls it."""
    for line in re.sub(r"\\\n\s*", " ", shell).splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("|&;<>()"):
                while words and re.fullmatch(r"[A-Z_][A-Z0-9_]*=.*", words[0]):
                    words.pop(0)
                if words and words[0] == "swift":
                    yield words[1:]
                words = []
            else:
                words.append(word)


def shown_lines() -> Iterator[tuple[str, list[str]]]:
    for file in DOCUMENTS:
        for block in FENCE.findall(file.read_text(encoding="utf-8")):
            yield from ((file.relative_to(ROOT).as_posix(), words) for words in swift_lines(block))
    for file in SCRIPTS:
        yield from ((file.relative_to(ROOT).as_posix(), words) for words in swift_lines(file.read_text(encoding="utf-8")))
    for file in CONFIGS:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("# ") and "swift " in line:
                yield from ((file.relative_to(ROOT).as_posix(), words) for words in swift_lines(line.removeprefix("# ")))


@pytest.mark.parametrize(
    ("place", "words"), [pytest.param(place, words, id=f"{place}: {' '.join(words)}"[:100]) for place, words in shown_lines()]
)
def test_shown_line_is_understood(place: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(ROOT)
    if words[0].startswith("-"):
        assert main(words) == 0, place
        return
    spec = COMMANDS.get(words[0].replace("_", "-"))
    if (spec.config is None and words[:2] != ["data", "preview"]) or {"--help", "-h", "--help_all"} & set(words):
        return  # a command with words of its own: that it exists is all that can be known without running it
    code = main([*words, "--print_config", "json"])
    shown = capsys.readouterr()
    assert code == 0, f"{place}: {shown.err}"
    assert isinstance(json.loads(shown.out), dict)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_example_config_says_how_to_run_it(file: Path):
    text = file.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    calls = [words for line in text.splitlines() if line.startswith("# ") for words in swift_lines(line.removeprefix("# "))]
    assert any(file.relative_to(ROOT).as_posix() in words for words in calls), "a comment says: # swift COMMAND path/of/this/file.yaml"


def python_blocks() -> Iterator[tuple[str, str]]:
    for file in DOCUMENTS:
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL), 1):
            yield f"{file.relative_to(ROOT).as_posix()}, block {number}", block


@pytest.mark.parametrize(("place", "block"), [pytest.param(*block, id=block[0]) for block in python_blocks()])
def test_shown_python_imports_what_exists(place: str, block: str):
    imports = [node for node in ast.parse(block).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports, f"{place}: a block starts with its imports, so that it runs as it is"
    exec(compile(ast.Module(body=imports, type_ignores=[]), place, "exec"), {})


def test_the_readme_shows_the_quick_start():
    commands = {words[0] for place, words in shown_lines() if place == "README.md"}
    assert {"sft", "infer", "merge-lora"} <= commands


@pytest.mark.parametrize(
    ("shell", "calls"),
    [
        ("swift list models | head -3", [["list", "models"]]),
        ("NPROC_PER_NODE=2 swift sft \\\n  --model m", [["sft", "--model", "m"]]),
        ("cd x && swift sft a.yaml > log  # swift pt", [["sft", "a.yaml"]]),
        ("pip install swift-core", []),
        ("$ swift sft --system 'be kind'", [["sft", "--system", "be kind"]]),
        ("""swift sft --columns '{"a": "b"}'""", [["sft", "--columns", '{"a": "b"}']]),
    ],
)
def test_swift_lines_are_found_in_shell_text(shell: str, calls: list[list[str]]):
    assert list(swift_lines(shell)) == calls
