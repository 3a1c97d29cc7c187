"""The tools that release and set up."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_bump(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "tools" / "bump.py"), *words], capture_output=True, text=True, check=False)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for file in [ROOT / "pyproject.toml", *ROOT.glob("packages/*/pyproject.toml")]:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def test_bump_sets_versions_and_pins_and_nothing_else(workspace: Path):
    before = {file: file.read_text(encoding="utf-8") for file in workspace.rglob("pyproject.toml")}
    answer = run_bump("7.8.9", "--root", str(workspace), "--no-lock")
    assert answer.returncode == 0, answer.stderr
    old = tomllib.loads(before[workspace / "pyproject.toml"])["project"]["version"]
    for file, text in before.items():
        changed = file.read_text(encoding="utf-8")
        project = tomllib.loads(changed)["project"]
        assert project["version"] == "7.8.9"
        operator = "~=" if file.parent.parent.name == "packages" else "=="
        extras = [line for extra in project.get("optional-dependencies", {}).values() for line in extra]
        for requirement in [*project.get("dependencies", []), *extras]:
            if requirement.startswith("swift-"):
                assert requirement.endswith(f"{operator}7.8.9"), requirement
        lines = [(a, b) for a, b in zip(text.splitlines(), changed.splitlines(), strict=True) if a != b]
        assert all(old in a and a.replace(old, "7.8.9") == b for a, b in lines)
        assert len(lines) >= 1


def test_bump_there_and_back_changes_nothing(workspace: Path):
    before = {file: file.read_text(encoding="utf-8") for file in workspace.rglob("pyproject.toml")}
    old = tomllib.loads(before[workspace / "pyproject.toml"])["project"]["version"]
    for version in ("3.0.0rc1", old):
        assert run_bump(version, "--root", str(workspace), "--no-lock").returncode == 0
    assert {file: file.read_text(encoding="utf-8") for file in before} == before


@pytest.mark.parametrize("version", ["1.2", "v1.2.3", "latest", "1.2.3+local"])
def test_bump_refuses_what_is_no_version(workspace: Path, version: str):
    before = (workspace / "pyproject.toml").read_text(encoding="utf-8")
    answer = run_bump(version, "--root", str(workspace), "--no-lock")
    assert answer.returncode == 2
    assert version in answer.stderr
    assert (workspace / "pyproject.toml").read_text(encoding="utf-8") == before
