"""Tasks that make and score themselves."""

from __future__ import annotations

import json

import pytest
from swift_core.errors import DataError, MissingDependencyError
from swift_rlhf.rewards import reasoning_gym as tasks


class ChainSum:
    """Stands in for a task of the library, whose own scorer gives part of the points."""

    def __init__(self, seed: int, size: int, terms: int = 2) -> None:
        self.seed, self.terms = seed, terms

    def __getitem__(self, index: int):
        return {"question": f"{self.seed} + {index}?", "answer": str(self.seed + index), "metadata": {}}

    def score_answer(self, answer, entry):
        return 1.0 if answer == entry["answer"] else 0.25


@pytest.fixture
def library(monkeypatch):
    try:
        import reasoning_gym  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        import sys
        from types import ModuleType

        fake, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
        factory.DATASETS = {"chain_sum": ChainSum}
        fake.create_dataset = lambda name, **settings: factory.DATASETS[name](**settings)
        monkeypatch.setitem(sys.modules, "reasoning_gym", fake)
        monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    tasks._dataset.cache_clear()
    yield
    tasks._dataset.cache_clear()


def test_rows_are_json_and_score_their_own_solution(library) -> None:
    rows = list(tasks.make_rows("chain_sum", size=3, seed=7))
    assert rows == list(tasks.make_rows("chain_sum", size=3, seed=7))
    made = [json.loads(json.dumps(row)) for row in rows]
    column = [row["reasoning_gym"] for row in made]
    assert len({row["messages"][0]["content"] for row in made}) == 3
    answers = [row["solution"] for row in made]
    assert tasks.reasoning_gym(answers, reasoning_gym=column) == [1.0, 1.0, 1.0]
    assert tasks.reasoning_gym([f"<think>0</think><answer> {answer} </answer>" for answer in answers], reasoning_gym=column) == [1.0] * 3
    wrong = tasks.reasoning_gym(["no", "no", "no"], reasoning_gym=[*column[:2], None])
    assert wrong[2] is None
    assert max(wrong[:2]) < 1


def test_unknown_tasks_and_settings_are_refused(library) -> None:
    with pytest.raises(DataError, match="did you mean chain_sum"):
        next(tasks.make_rows("chain_sums", size=1, seed=1))
    with pytest.raises(DataError, match="refuses its settings"):
        next(tasks.make_rows("chain_sum", size=1, seed=1, colour="red"))


def test_without_the_library_the_pip_line_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    tasks._dataset.cache_clear()
    with pytest.raises(MissingDependencyError) as caught:
        next(tasks.make_rows("chain_sum", size=1, seed=1))
    assert "swift-rlhf[reasoning-gym]" in str(caught.value)
