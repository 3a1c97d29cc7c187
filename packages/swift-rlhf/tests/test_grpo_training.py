"""GRPO from settings to weights, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from swift_core.cli.main import main
from swift_core.errors import ConfigError, DataError
from swift_core.models.loading import get_model_tokenizer
from swift_core.testing.tiny import make_tiny_model
from swift_rlhf.config import RlhfConfig
from swift_rlhf.config.python import GRPOConfig
from swift_rlhf.grpo.trainer import GRPOTrainer

ROWS = [{"messages": [{"role": "user", "content": f"say {word}"}], "solution": word} for word in ("one", "two", "six", "ten", "red")]
USUAL: dict[str, Any] = {
    "max_completion_length": 6,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "report_to": ["none"],
    "disable_tqdm": True,
    "use_cpu": True,
    "add_version": False,
    "beta": 0.0,
    "weight_decay": 0.0,
    "temperature": 1.0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(Path(tmp_path_factory.mktemp("model")))


def even(completions: list[str], *, completion_ids: list[list[int]], solution: list[str], **columns: Any) -> list[float | None]:
    """Return the share of even tokens."""
    assert len(solution) == len(completions) == len(columns["messages"])
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def trained(folder: Path, out: Path, rows: list[Any] = ROWS, reward: Any = even, resume: bool = False, **settings: Any) -> GRPOTrainer:
    model, tokenizer = get_model_tokenizer(folder)
    assert model is not None
    trainer = GRPOTrainer(model, reward, GRPOConfig(**{**USUAL, "output_dir": str(out), **settings}), rows, processing_class=tokenizer)
    try:
        trainer.train(resume_from_checkpoint=resume or None)
    finally:
        trainer.close()
    return trainer


def lines(out: Path, name: str = "logging.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]


def test_the_reward_rises(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path, max_steps=25, per_device_train_batch_size=16, num_generations=8, learning_rate=1e-2, save_strategy="no")
    rewards = [line["reward"] for line in lines(tmp_path)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15
    line = lines(tmp_path)[3]
    assert line["policy/ratio"] == pytest.approx(1) and line["policy/kl"] == 0
    assert abs(line["rollout_correction/kl"]) < 1e-3 and line["rollout_correction/ess_token"] > 0.999
    assert {"reward/even/mean", "reward/even/std", "frac_reward_zero_std", "completions/clipped_ratio", "entropy_estimate"} <= set(line)
    written = lines(tmp_path, "completions.jsonl")
    assert len(written) == 25 * 16
    first = [row for row in written if row["group"] == 0]
    assert len({row["prompt"] for row in first}) == 1 and sum(row["advantage"] for row in first) == pytest.approx(0, abs=1e-4)


STATES: dict[str, dict[str, Any]] = {
    "several updates": {"steps_per_generation": 3, "num_iterations": 2},
    "bank": {"dynamic_sample": True},
}


@pytest.mark.parametrize("name", STATES)
def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, tmp_path: Path, name: str) -> None:
    # Rewards of 0 and 1 leave some groups without a difference, so that others take their place.
    def odd(completions: list[str], *, completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        return [float(sum(ids) % 5 == 0) for ids in completion_ids]

    settings = {"save_steps": 4, "max_steps": 9, "save_total_limit": 1, **STATES[name]}
    trained(folder, tmp_path / "whole", reward=odd, **settings)
    trained(folder, tmp_path / "parts", reward=odd, **{**settings, "max_steps": 4})
    state = json.loads((tmp_path / "parts" / "checkpoint-4" / "stream.json").read_text("utf-8"))["stream"]
    assert state["buffer"] if name == "several updates" else "bank" in state
    trained(folder, tmp_path / "parts", reward=odd, resume=True, **settings)
    whole, parts = (load_file(tmp_path / run / "checkpoint-9" / "model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert lines(tmp_path / "whole", "completions.jsonl") == lines(tmp_path / "parts", "completions.jsonl")


def test_several_updates_of_a_round_are_clipped_against_its_own_policy(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path, max_steps=4, num_iterations=4, epsilon=0.02, learning_rate=2e-2, save_strategy="no")
    ratios = [abs(line["policy/kl"]) for line in lines(tmp_path)]
    assert ratios[0] < 1e-6 < ratios[3] and lines(tmp_path)[3]["clip_ratio/region"] > 0
    assert len(lines(tmp_path, "completions.jsonl")) == 8


def test_groups_without_a_difference_are_replaced(folder: Path, tmp_path: Path) -> None:
    def fickle(completions: list[str], *, messages: list[Any], completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
        # Three of five prompts always get the same.
        dull = ("one", "two", "six")
        return [1.0 if turns[0]["content"].endswith(dull) else float(sum(ids)) for turns, ids in zip(messages, completion_ids, strict=True)]

    trained(folder, tmp_path, reward=fickle, max_steps=5, dynamic_sample=True, max_resample_times=4, save_strategy="no")
    for line in lines(tmp_path):
        assert line["frac_reward_zero_std"] == 0 and line["dynamic_sample/unfilled"] == 0
    assert max(line["dynamic_sample/resample_rounds"] for line in lines(tmp_path)) > 1


VARIANTS: dict[str, dict[str, Any]] = {
    "reference": {"beta": 0.1, "tuner": True},
    "rloo, KL in the reward": {"advantage_estimator": "rloo", "beta": 0.05, "tuner": True},
    "gdpo, token correction": {"scale_rewards": "gdpo", "rollout_importance_sampling_mode": "token_truncate"},
    "entropy quantile": {"top_entropy_quantile": 0.3, "log_entropy": True, "loss_type": "dapo"},
    "overlong filter": {"overlong_filter": True, "loss_type": "dr_grpo"},
    "gspo": {"loss_type": "gspo", "num_iterations": 2},
    "real": {"loss_type": "real"},
    "sampling": {"top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1, "padding_free": False},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run(folder: Path, tmp_path: Path, name: str) -> None:
    settings = dict(VARIANTS[name])
    if settings.pop("tuner", False):
        pytest.importorskip("swift_tuners")
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        reward = tmp_path / "rewards.py"
        reward.write_text("def count(completions, solution, **columns):\n    return [float(len(set(text))) for text in completions]\n")
        values = {**USUAL, **settings, "max_steps": 2, "output_dir": str(tmp_path / "out"), "save_strategy": "no"}
        words = [
            word
            for key, value in values.items()
            for word in (f"--{key}", *([str(v) for v in value] if isinstance(value, list) else [str(value)]))
        ]
        rest = ["--model", str(folder), "--dataset", str(data), "--reward_funcs", f"{reward}:count"]
        assert main(["rlhf", "--rlhf_type", "grpo", *rest, *words]) == 0
        found = lines(tmp_path / "out")
    else:
        trained(folder, tmp_path / "out", max_steps=2, save_strategy="no", **settings)
        found = lines(tmp_path / "out")
    assert len(found) == 2
    if name == "reference":
        # Adapters start as nothing: the first step is where the reference is.
        assert found[0]["kl"] < 1e-3 < found[1]["kl"] or found[1]["kl"] > found[0]["kl"]
    if name == "overlong filter":
        cut = [line["completions/clipped_ratio"] for line in found]
        assert max(cut) > 0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"per_device_train_batch_size": 6}, "num_generations"),
    (
        {"num_generations": 8, "per_device_train_batch_size": 8, "steps_per_generation": 2, "gradient_accumulation_steps": 3},
        "generation_batch_size",
    ),
    ({"loss_type": "real", "beta": 0.1}, "beta"),
    ({"loss_type": "cispo", "epsilon_high": 5}, "epsilon_high"),
    ({"delta": 1.1}, "delta"),
    ({"use_vllm": True}, "use_vllm"),
    ({"tau_pos": 2.0}, "tau_pos"),
    ({"loss_type": "dpo"}, "loss_type"),
    ({"kl_in_reward": True}, "kl_in_reward"),
]


@pytest.mark.parametrize(("settings", "where"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GRPOConfig(**{**USUAL, **settings})
    assert any(where in problem.where for problem in caught.value.problems) and all(problem.fix for problem in caught.value.problems)


def test_the_command_asks_for_what_is_missing() -> None:
    with pytest.raises(ConfigError) as caught:
        RlhfConfig(rlhf_type="grpo", tuner_type="full")
    assert {"--model", "--dataset", "--reward_funcs"} <= {problem.where for problem in caught.value.problems}
    values: dict[str, Any] = {"model": "m", "dataset": ["d"], "reward_funcs": ["format"], "per_device_train_batch_size": 8}
    assert RlhfConfig(rlhf_type="grpo", tuner_type="full", **values).beta == 0.04


def test_prompts_are_asked_without_their_answer_and_long_ones_left_out(folder: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def look(completions: list[str], *, solution: list[str], messages: list[Any], **columns: Any) -> list[float | None]:
        seen.extend(zip(solution, messages, strict=True))
        return [float(len(text)) for text in completions]

    rows = [{"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "it"}]}]
    trained(folder, tmp_path, rows=rows, reward=look, max_steps=1, save_strategy="no")
    assert {solution for solution, _ in seen} == {"it"} and all(len(turns) == 2 and turns[1]["content"] != "it" for _, turns in seen)
    with pytest.raises(DataError, match="no prompts"):
        trained(folder, tmp_path / "none", rows=[], max_steps=1)


def test_a_reward_that_fails_names_itself_and_the_row(folder: Path, tmp_path: Path) -> None:
    def broken(completions: list[str], **columns: Any) -> list[float | None]:
        raise KeyError("gold")

    with pytest.raises(Exception, match=r"reward 'broken' at train_dataset\[\d\].*gold"):
        trained(folder, tmp_path, reward=broken, max_steps=1)
