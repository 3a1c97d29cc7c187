"""What `swift doctor run` says of a run, from its log alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from swift_core.cli.main import main
from swift_core.cli.run_doctor import explain


def grpo(**changed: Any) -> list[dict[str, Any]]:
    """Return the log of a healthy run of 16 steps; a function of the step replaces a number."""
    usual: dict[str, Any] = {
        "loss": 1e-8,
        "grad_norm": 0.5,
        "reward": lambda step: 0.2 + 0.03 * step,
        "reward/right/mean": lambda step: 0.2 + 0.03 * step,
        "frac_reward_zero_std": 0.2,
        "policy/ratio": 1.0,
        "clip_ratio/region": 0.0,
        "completions/clipped_ratio": 0.0,
        "completions/mean_length": 40.0,
        "entropy_estimate": 1.0,
        "learning_rate": 1e-5,
        "rollout_correction/ess_token": 0.999,
        "rollout_seconds": 1.0,
        "reward_wait_seconds": 0.01,
        **changed,
    }
    return [
        {"step": step, "total_steps": 16, **{name: value(step) if callable(value) else value for name, value in usual.items()}}
        for step in range(1, 17)
    ]


def said(lines: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    return {finding.what: finding for finding in explain(lines, settings)}


def test_a_healthy_run_is_told_why_its_loss_and_clipping_are_zero() -> None:
    found = said(grpo())
    assert {finding.level for finding in found.values()} == {"ok"}
    assert "rises from 0.275 to 0.635" in found["reward"].found
    assert "says nothing" in found["loss"].found and "nothing to clip" in found["clipping"].found


SICK: dict[str, tuple[dict[str, Any], str, str]] = {
    "no learning": ({"reward": lambda step: 0.3 + 0.01 * (step % 2)}, "reward", "does not rise"),
    "falling": ({"reward": lambda step: 0.9 - 0.03 * step}, "reward", "falls"),
    "solved": ({"frac_reward_zero_std": 0.9, "reward": 0.99}, "groups", "the prompts are solved"),
    "too hard": ({"frac_reward_zero_std": 1.0, "reward": 0.0}, "groups", "no answer is better"),
    "no gradient": ({"grad_norm": 0.0}, "gradient", "nothing is learned"),
    "cut off": ({"completions/clipped_ratio": 0.5}, "lengths", "50% of the answers"),
    "collapse": ({"entropy_estimate": lambda step: 0.7**step}, "entropy", "all alike"),
    "mismatch": ({"rollout_correction/ess_token": 0.4}, "engine", "40% of the tokens"),
    "slow rewards": ({"reward_wait_seconds": 0.8}, "rewards", "80% of the time"),
    "constant reward": ({"reward/right/mean": 0.0}, "right", "0 in every step"),
    "failing reward": ({"reward/right/failed": 2.0}, "right", "32 answers"),
    "clipped away": ({"clip_ratio/region": 0.6, "policy/ratio": 1.4}, "clipping", "60% of the tokens"),
    "far away": ({"kl": 3.0}, "kl", "3 nats"),
}


@pytest.mark.parametrize("name", SICK)
def test_what_is_wrong_is_named_with_a_remedy(name: str) -> None:
    changed, what, words = SICK[name]
    finding = said(grpo(**changed))[what]
    assert finding.level != "ok" and words in finding.found and finding.fix


def test_fine_tuning_is_judged_by_its_losses() -> None:
    falling = [{"step": step, "loss": 3 / step, "grad_norm": 1.0} for step in range(1, 12)]
    assert said(falling)["loss"].level == "ok"
    assert "no learning" in said([{**line, "loss": 3.0} for line in falling])["loss"].found
    assert said([{**line, "loss": 0.0, "grad_norm": 0.0} for line in falling])["loss"].level == "fail"
    worse = [*falling, *({"step": step, "eval_loss": loss} for step, loss in ((3, 2.0), (6, 1.0), (9, 1.6)))]
    assert "by heart" in said(worse)["evaluation"].found


def test_the_command_reads_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in grpo(grad_norm=0.0))
    (tmp_path / "logging.jsonl").write_text(lines + '{"step": 17, "lo')
    assert main(["doctor", "run", str(tmp_path)]) == 1
    assert "fail  gradient" in capsys.readouterr().out
    assert main(["doctor", "run", str(tmp_path), "--format", "json"]) == 1
    assert {finding["what"] for finding in json.loads(capsys.readouterr().out)} >= {"log", "gradient", "reward"}
    assert main(["doctor", "run", str(tmp_path / "nowhere")]) == 1
    assert "no logging.jsonl" in capsys.readouterr().err
