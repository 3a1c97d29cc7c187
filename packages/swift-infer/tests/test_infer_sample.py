"""`swift sample`: what is kept of several answers, and going on after a stop."""

import json

import pytest
from swift_core.errors import ConfigError, DataError
from swift_core.protocols import AssistantMessage, ChatChoice, InferResponse, Sample, Usage
from swift_infer.batch import Question
from swift_infer.config import SampleConfig, SampleSection
from swift_infer.sample import Judged, rows_of, sample_dataset

QUESTION = Question([{"role": "user", "content": "2+2?"}], "4", Sample([], origin="a.jsonl:1"))


def judged(rewards=(0.0, 1.0, 1.0, 0.5), finished=(True,) * 4):
    return Judged(QUESTION, ["3", "4", "4", "four"], list(rewards) if rewards else None, list(finished))


@pytest.mark.parametrize(
    ("settings", "answers", "kept"),
    [
        ({}, judged(), ["4"]),
        ({"n_best_to_keep": 3}, judged(), ["4", "four", "3"]),
        ({"n_best_to_keep": 3, "min_reward": 0.5}, judged(), ["4", "four"]),
        ({"n_best_to_keep": 2}, judged(None), ["3", "4"]),
        ({"n_best_to_keep": 3}, judged(finished=(True, False, False, True)), ["four", "3"]),
        ({"min_reward": 2}, judged(), []),
    ],
)
def test_the_best_answers_become_examples(settings, answers, kept):
    rows = rows_of(answers, SampleSection(**settings))
    assert [row["messages"][-1]["content"] for row in rows] == kept
    assert all(row["messages"][:-1] == QUESTION.messages and row["origin"] == "a.jsonl:1" for row in rows)


def test_pairs_have_a_better_and_the_worst_answer():
    (row,) = rows_of(judged(), SampleSection(output_format="dpo"))
    assert (row["messages"][-1]["content"], row["rejected_response"], row["margin"]) == ("4", "3", 1.0)
    assert rows_of(judged((1.0,) * 4), SampleSection(output_format="dpo")) == []


def test_all_answers_can_be_kept():
    (row,) = rows_of(judged(), SampleSection(output_format="all"))
    assert (row["responses"], row["rewards"], row["labels"]) == (["3", "4", "4", "four"], [0.0, 1.0, 1.0, 0.5], "4")


class Engine:
    """Answers with the seed and a number; stops the program at a row when it is told to."""

    model_name = "e"

    def __init__(self, fails_at=None):
        self.fails_at, self.asked = fails_at, []

    async def ainfer(self, request, config=None):
        text = request.messages[-1]["content"]
        if text == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(text)
        choices = [ChatChoice(number, AssistantMessage(f"{text} {config.seed % 97} {number}"), "stop") for number in range(config.n)]
        return InferResponse(choices, Usage(1, config.n))

    def close(self):
        pass


def config_of(tmp_path, **more):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"query": f"q{number}", "solution": str(number)}) + "\n" for number in range(5)))
    reward = tmp_path / "my_reward.py"
    reward.write_text(
        "def longest(completions, solution, **columns):\n    return [int(c.split()[-1]) + int(s) for c, s in zip(completions, solution)]\n"
    )
    given = {"num_return_sequences": 3, "write_batch_size": 2, "seed": 7, "reward_funcs": [f"{reward}:longest"], **more}
    return SampleConfig(model="m", dataset=[str(rows)], output_file=str(tmp_path / "out.jsonl"), **given)


def test_a_run_that_was_stopped_goes_on_and_gives_the_same(tmp_path):
    config, path = config_of(tmp_path), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        sample_dataset(config, None, lambda: Engine(fails_at="q3"))
    assert len(path.read_text().splitlines()) == 2
    with path.open("a") as file:
        file.write('{"cut off')
    engine = Engine()
    assert sample_dataset(config, None, lambda: engine) == 0
    assert engine.asked == ["q2", "q3", "q4"]
    resumed = path.read_text()
    path.unlink()
    (tmp_path / "out.jsonl.state").unlink()
    sample_dataset(config, None, Engine)
    assert path.read_text() == resumed and len(resumed.splitlines()) == 5
    rows = [json.loads(line) for line in resumed.splitlines()]
    assert [row["reward"] for row in rows] == [2.0, 3.0, 4.0, 5.0, 6.0]
    sample_dataset(config, None, lambda: pytest.fail("all rows are done"))
    with pytest.raises(DataError, match="other settings"):
        sample_dataset(config_of(tmp_path, seed=8), None, Engine)


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"output_format": "dpo", "reward_funcs": []}, "--output_format dpo"),
        ({"min_reward": 1.0, "reward_funcs": []}, "--min_reward"),
        ({"n_best_to_keep": 4}, "--n_best_to_keep"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, given, flag):
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, **given)
    assert flag in [problem.where for problem in caught.value.problems]


def test_an_unknown_reward_is_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match="no_such"):
        sample_dataset(config_of(tmp_path, reward_funcs=["no_such"]), None, lambda: pytest.fail("loaded"))
