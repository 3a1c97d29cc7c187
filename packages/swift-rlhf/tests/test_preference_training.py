"""Training on judged answers: layout, first loss, resuming, refusals, and that it learns."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.batching.collate import IGNORED
from swift_core.errors import ConfigError, DataError
from swift_core.registry import TUNERS
from swift_core.scoring.scorer import Scorer
from swift_core.testing.tiny import make_tiny_model
from swift_rlhf.config import RlhfConfig
from swift_rlhf.preference.layout import lay_out
from swift_rlhf.preference.reference import STATE
from swift_rlhf.preference.samples import Answer, shared_tokens
from swift_rlhf.preference.scoring import score_answers
from transformers import AutoModelForCausalLM

WORDS = ("Paris", "London", "yes", "no", "hello", "France", "seven", "small")


def rows(count: int) -> list[dict[str, Any]]:
    """Return pairs: good answers say thank you, bad ones do not."""
    found: list[dict[str, Any]] = []
    for number in range(count):
        question, answer = f"{WORDS[number % 8]} {WORDS[number // 8 % 8]}", f"{WORDS[(number * 3) % 8]} {WORDS[(number * 5) % 8]}"
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": f"{answer} thank you"}]
        found.append({"messages": turns, "rejected_response": f"{answer} nothing"})
    return found


def judged(count: int) -> list[dict[str, Any]]:
    """Return the answers of the pairs one by one."""
    found: list[dict[str, Any]] = []
    for row in rows(count):
        bad = [row["messages"][0], {"role": "assistant", "content": row["rejected_response"]}]
        found += [{"messages": row["messages"], "label": True}, {"messages": bad, "label": False}]
    return found


def write(path: Path, values: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def run(model: str, folder: Path, data: str, **settings: Any) -> list[dict[str, Any]]:
    """Train and return the log."""
    values: dict[str, Any] = {
        "model": model,
        "dataset": [data],
        "tuner_type": "full",
        "use_cpu": True,
        "output_dir": str(folder),
        "add_version": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        **settings,
    }
    config = RlhfConfig(**values)
    spec = config.algorithm
    assert spec is not None
    from swift_core.registry import import_target

    import_target(spec.target, needed_for="the test")(config)
    return [json.loads(line) for line in (folder / "logging.jsonl").read_text(encoding="utf-8").splitlines()]


def answer(ids: list[int], trained: int, **more: Any) -> Answer:
    return Answer(ids, [IGNORED] * (len(ids) - trained) + ids[len(ids) - trained :], **more)


def pair(prompt: list[int], good: list[int], bad: list[int]) -> Answer:
    rejected = answer([*prompt, *bad], len(bad))
    found = answer([*prompt, *good], len(good), rejected=rejected)
    found.shared = shared_tokens(found, rejected)
    return found


def test_a_prompt_is_shared_up_to_the_first_trained_token() -> None:
    found = pair([5, 6, 7], [8, 9], [8, 10, 11])
    assert found.shared == 3  # the first token of the answers is the same, but trained
    assert pair([5], [8], [9]).shared == 1
    assert shared_tokens(answer([4, 5], 1), answer([3, 5], 1)) == 0


def test_a_pair_behind_one_prompt_scores_as_two_padded_rows(model: str) -> None:
    pairs = [pair([5, 6, 7, 30], [8, 9, 2], [10, 2]), pair([20, 21], [22, 2], [22, 23, 24, 2]), pair([40], [41], [42, 43])]
    found: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    for packed in (True, False):
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
        batch = lay_out(pairs, pad_token_id=0, packed=packed)
        assert bool(batch.batch.parents) is packed
        scores = score_answers(Scorer(policy), batch).logps
        torch.sigmoid(scores[0::2] - scores[1::2]).sum().backward()
        found.append((scores.detach(), [weight.grad for weight in policy.parameters() if weight.grad is not None]))
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-6)


def test_a_cut_prompt_keeps_what_is_shared_the_same_on_both_sides() -> None:
    assert lay_out([pair([5, 6], [7], [8])], pad_token_id=0, packed=True).batch.segments == (2, 1, 1)


@pytest.mark.parametrize(
    ("kind", "more", "first"),
    [
        ("dpo", {}, math.log(2)),
        ("dpo", {"loss_type": ["hinge"]}, 1.0),
        ("dpo", {"loss_type": ["ipo"]}, 25.0),
        ("dpo", {"loss_type": ["aot"], "per_device_token_budget": 40}, math.log(2)),
        ("dpo", {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]}, 0.8 * math.log(2) + 0.4 * math.log(2)),
        ("kto", {}, 0.5),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
def test_policy_and_reference_are_the_same_at_the_first_step(
    model: str, tmp_path: Path, kind: str, more: dict[str, Any], first: float
) -> None:
    data = write(tmp_path / "rows.jsonl", judged(8) if kind == "kto" else rows(8))
    log = run(model, tmp_path / "out", data, rlhf_type=kind, max_steps=2, **more)
    assert log[0]["loss"] == pytest.approx(first, abs=1e-4)
    assert log[1]["loss"] != pytest.approx(first, abs=1e-6)
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"} <= log[0].keys()


@pytest.mark.parametrize("kind", ["dpo", "kto", "simpo", "orpo", "cpo", "rm"])
def test_held_out_answers_are_told_apart(model: str, tmp_path: Path, kind: str) -> None:
    values = judged(16) if kind == "kto" else rows(24)
    data = write(tmp_path / "rows.jsonl", values)
    more: dict[str, Any] = {"learning_rate": 1e-2, "max_steps": 12, "split_dataset_ratio": 0.25, "eval_strategy": "steps", "eval_steps": 12}
    log = run(model, tmp_path / "out", data, rlhf_type=kind, **more)
    held_out = [line for line in log if "eval_loss" in line][-1]
    assert held_out["eval_rewards/accuracies"] > 0.8
    assert held_out["eval_rewards/margins"] > 0


@pytest.mark.parametrize(
    ("kind", "more"),
    [("dpo", {"sync_ref_model": True, "ref_model_sync_steps": 2}), ("dpo", {"loss_type": ["bco_pair"]}), ("kto", {}), ("rm", {})],
)
def test_a_resumed_run_ends_with_the_same_weights(model: str, tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    data = write(tmp_path / "rows.jsonl", judged(8) if kind == "kto" else rows(16))
    settings = {"rlhf_type": kind, "max_steps": 4, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2, **more}
    last = tmp_path / "out" / "checkpoint-4"
    whole = run(model, tmp_path / "out", data, **settings)
    weights = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    resumed = run(model, tmp_path / "out", data, **settings, resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert (last / "model.safetensors").read_bytes() == weights
    names = [name for name in whole[-1] if name in ("loss", "grad_norm", "kl") or name.startswith(("rewards", "logps"))]
    assert [whole[-1][name] for name in names] == [resumed[-1][name] for name in names]
    assert (last / STATE).is_file() is ("sync_ref_model" in more)


def test_reference_log_probabilities_come_from_the_disk_the_second_time(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    data = write(tmp_path / "rows.jsonl", rows(8))
    plain = run(model, tmp_path / "plain", data, rlhf_type="dpo")
    first = run(model, tmp_path / "first", data, rlhf_type="dpo", precompute_ref_log_probs=True)
    assert "0 rows from" in capsys.readouterr().err
    second = run(model, tmp_path / "second", data, rlhf_type="dpo", precompute_ref_log_probs=True)
    assert "8 rows from" in capsys.readouterr().err
    assert [line["loss"] for line in first] == [line["loss"] for line in second]
    assert [line["loss"] for line in first] == pytest.approx([line["loss"] for line in plain], abs=1e-5)


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        ({"query": "a", "response": "b"}, "dpo", "no rejected answer"),
        ({"query": "a", "response": "b", "rejected_response": "b"}, "dpo", "rejected answer is the preferred one"),
        ({"query": "a", "response": "b", "label": "maybe"}, "kto", "label"),
        ({"query": "a", "response": "b"}, "kto", "label"),
    ],
)
def test_rows_that_cannot_be_compared_are_named(model: str, tmp_path: Path, row: dict[str, Any], kind: str, said: str) -> None:
    data = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=said) as caught:
        run(model, tmp_path / "out", data, rlhf_type=kind)
    assert "rows.jsonl:1" in str(caught.value)


def test_rows_that_are_all_too_long_say_by_how_much(model: str, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", rows(4))
    with pytest.raises(DataError, match="no row is left") as caught:
        run(model, tmp_path / "out", data, rlhf_type="dpo", max_length=8)
    assert "shortest has" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rlhf_type": "orpo", "ref_model": "x"}, "no reference model"),
        pytest.param(
            {"rlhf_type": "dpo", "tuner_type": "lora", "sync_ref_model": True},
            "only an adapter is trained",
            marks=pytest.mark.skipif("lora" not in TUNERS.names(), reason="swift-tuners is not installed"),
        ),
        ({"rlhf_type": "dpo", "loss_type": ["exo_pair"]}, "label smoothing above 0"),
        ({"rlhf_type": "dpo", "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "1 values for 2 losses"),
        ({"rlhf_type": "kto", "simpo_gamma": 0.5}, "no effect with --rlhf_type kto"),
        ({"rlhf_type": "dpo", "ref_model_sync_steps": 3}, "no effect without --sync_ref_model"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RlhfConfig(model="x", dataset=["y"], **{"tuner_type": "full", **settings})
