"""The table of tuners in the README says what the tuners say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from swift_tuners.specs import TUNERS as OWN

README = Path(__file__).parents[1] / "packages" / "swift-tuners" / "README.md"


@pytest.mark.parametrize("spec", OWN, ids=lambda spec: spec.name)
def test_the_readme_has_the_same_table(spec: Any) -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    names = ", ".join(f"`{name}`" for name in (spec.name, *spec.aliases))
    line = next(line for line in lines if line.startswith(f"| {names} |"))
    said = [cell.strip() for cell in line.strip("|").split("|")][1:]
    facts = [spec.mergeable, spec.quantised, spec.several, spec.checkpointing, spec.parameters]
    assert said == [*("yes" if fact else "–" for fact in facts), spec.summary]
