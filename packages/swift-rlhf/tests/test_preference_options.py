"""Options of judged answers against their formulas, pairs with pictures and tools, reward models, and two ranks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.batching.collate import IGNORED
from swift_core.errors import DataError
from swift_core.registry import TASKS, TUNERS
from swift_core.testing.tiny import make_tiny_model
from swift_rlhf.config import RlhfConfig
from swift_rlhf.preference.run import prepare
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

WORDS = ("Paris", "London", "yes", "no", "hello", "France", "seven", "small")


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    """Return pairs: good answers say thank you, and are longer than bad ones."""
    found: list[dict[str, Any]] = []
    for number in range(count):
        answer = f"{WORDS[(number * 3) % 8]} {WORDS[(number * 5) % 8]}"
        turns = [{"role": "user", "content": f"{WORDS[number % 8]} {WORDS[number // 8 % 8]}"}]
        turns.append({"role": "assistant", "content": f"{answer} thank you very much"})
        found.append({"messages": turns, "rejected_response": f"{answer} nothing", **more})
    return found


def write(path: Path, values: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tiny")
    return str(make_tiny_model(folder / "one")), str(make_tiny_model(folder / "two", seed=1))


def settings_of(model: str, folder: Path, data: str, **settings: Any) -> dict[str, Any]:
    return {
        "model": model,
        "dataset": [data],
        "tuner_type": "full",
        "use_cpu": True,
        "output_dir": str(folder),
        "add_version": False,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "logging_steps": 1,
        "report_to": ["none"],
        "disable_tqdm": True,
        "save_strategy": "no",
        **settings,
    }


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "logging.jsonl").read_text(encoding="utf-8").splitlines()]


def run(model: str, folder: Path, data: str, kind: str = "dpo", **settings: Any) -> list[dict[str, Any]]:
    TASKS.load(kind)(RlhfConfig(rlhf_type=kind, **settings_of(model, folder, data, **settings)))
    return log_of(folder)


def token_logps(model: Any, tokenizer: Any, row: dict[str, Any], answer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probability and `log sum p^2` of the tokens of an answer, from plain logits."""
    prompt = tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True)
    start = len(tokenizer(prompt)["input_ids"])
    ids = torch.tensor(tokenizer(f"{prompt}{answer}<|im_end|>")["input_ids"])
    with torch.no_grad():
        found = model(ids[None]).logits[0].double().log_softmax(-1)[start - 1 : -1]
    return found.gather(1, ids[start:, None])[:, 0], (2 * found).exp().sum(-1).log()


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "WPO": {"use_weighting": True},
    "LD-DPO": {"ld_alpha": 0.3},
    "RPO": {"rpo_alpha": 0.5},
    "mix": {"loss_type": ["sigmoid", "hinge"], "loss_weights": [0.8, 0.3]},
    "WPO and RPO": {"use_weighting": True, "rpo_alpha": 0.5, "padding_free": False},
}


@pytest.mark.parametrize("name", CASES)
def test_the_first_loss_with_a_second_model_as_reference_is_that_of_the_formula(models: tuple[str, str], tmp_path: Path, name: str) -> None:
    given, case = rows(4), CASES[name]
    log = run(models[0], tmp_path / "out", write(tmp_path / "rows.jsonl", given), ref_model=models[1], max_steps=1, **case)
    policy, reference = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64) for folder in models)
    tokenizer = AutoTokenizer.from_pretrained(models[0])
    losses, costs, tokens = [], [], 0
    for row in given:
        answers = (row["messages"][1]["content"], row["rejected_response"])
        ours = [token_logps(policy, tokenizer, row, answer) for answer in answers]
        theirs = [token_logps(reference, tokenizer, row, answer)[0] for answer in answers]
        shorter = min(len(logps) for logps in theirs)
        alpha = case.get("ld_alpha", 1.0)

        def total(logps: torch.Tensor, shorter: int = shorter, alpha: float = alpha) -> float:
            return float(logps[:shorter].sum() + alpha * logps[shorter:].sum())

        z = 0.1 * ((total(ours[0][0]) - total(theirs[0])) - (total(ours[1][0]) - total(theirs[1])))
        weight = math.prod(float((logps - squares).mean().exp()) for logps, squares in ours) if case.get("use_weighting") else 1.0
        parts = {"sigmoid": math.log1p(math.exp(-z)), "hinge": max(0.0, 1 - z)}
        shares = dict(zip(case.get("loss_type", ["sigmoid"]), case.get("loss_weights", [1.0]), strict=True))
        losses.append((sum(share * parts[kind] for kind, share in shares.items()), weight))
        costs.append(-float(ours[0][0].sum()) * weight)
        tokens += len(ours[0][0])
    expected = sum(loss * weight for loss, weight in losses) / 4 + case.get("rpo_alpha", 0.0) * sum(costs) / tokens
    assert log[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_vl", "llava"])
def test_pairs_about_pictures_learn_and_keep_their_layouts_apart(kind: str, tmp_path: Path) -> None:
    tiny = pytest.importorskip("swift_core.testing.tiny_multimodal")
    if kind not in tiny.available_kinds():
        pytest.skip("its processor needs a library that is not installed")
    model = str(tiny.make_tiny_multimodal(kind, tmp_path / kind))
    picture = [str(tiny.make_picture(tmp_path, f"{place}.png", color=(200 * place, 30, 200 - 200 * place))) for place in range(2)]
    given = rows(6)
    for number, row in enumerate(given[:4]):
        row["images"] = [picture[number % 2]]
        row["messages"][0]["content"] = "<image>" + row["messages"][0]["content"]
    data = write(tmp_path / "rows.jsonl", given)
    logs = []
    for place, padding_free in enumerate((True, False)):
        more = {"learning_rate": 5e-3, "max_steps": 4, "padding_free": padding_free, "per_device_train_batch_size": 6}
        logs.append(run(model, tmp_path / f"out{place}", data, **more))
    assert logs[0][0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert logs[0][-1]["rewards/margins"] > 0.1 and logs[0][-1]["rewards/accuracies"] == 1
    assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], abs=2e-3)


def test_turns_of_tools_are_not_compared(models: tuple[str, str], tmp_path: Path) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    turns = [
        {"role": "user", "content": "ask the tool"},
        {"role": "assistant", "content": call},
        {"role": "tool", "content": "the tool says seven"},
        {"role": "assistant", "content": "it is seven"},
    ]
    worse = [*turns[1:3], {"role": "assistant", "content": "I do not know"}]
    data = write(tmp_path / "rows.jsonl", [{"messages": turns, "rejected_messages": [turns[0], *worse]}])
    for scale, wanted in (("last_round", {"it is seven"}), ("default", {"it is seven", '"name": "f"'})):
        values = settings_of(models[0], tmp_path / "out", data)
        prepared = prepare(RlhfConfig(rlhf_type="dpo", loss_scale=scale, agent_template="hermes", **values))
        pair = prepared.train[0]
        kept = [token for token, label in zip(pair.input_ids, pair.labels, strict=True) if label != IGNORED]
        text = prepared.tokenizer.decode(kept)
        assert all(part in text for part in wanted) and "the tool says" not in text
        assert pair.rejected is not None and "the tool says" in prepared.tokenizer.decode(pair.rejected.input_ids)
        assert pair.shared > 0


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_reward_model_is_a_sequence_classifier(models: tuple[str, str], tmp_path: Path, tuner: str) -> None:
    if tuner not in TUNERS.names():
        pytest.skip("swift-tuners is not installed")
    data = write(tmp_path / "rows.jsonl", rows(8, margin=0.5))
    more = {"max_steps": 12, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 12, "num_labels": 2, "tuner_type": tuner}
    log = run(models[0], tmp_path / "out", data, "rm", **more, center_rewards_coefficient=0.01)
    assert log[-1]["rewards/accuracies"] == 1 and log[-1]["rewards/margins"] > 0.5
    folder = tmp_path / "out" / "checkpoint-12"
    args = json.loads((folder / "args.json").read_text("utf-8"))
    assert (args["task_type"], args["num_labels"], args["problem_type"]) == ("seq_cls", 2, "regression")
    if tuner == "full":
        model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert model.config.num_labels == 2 and not info["missing_keys"]
    else:
        peft: Any = pytest.importorskip("peft")
        base = AutoModelForSequenceClassification.from_pretrained(models[0], num_labels=2)
        model = peft.PeftModel.from_pretrained(base, folder)
        model.config.pad_token_id = 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    row = rows(1)[0]
    scores = []
    for answer in (row["messages"][1]["content"], row["rejected_response"]):
        text = tokenizer.apply_chat_template([row["messages"][0], {"role": "assistant", "content": answer}], tokenize=False)
        with torch.no_grad():
            scores.append(model(**tokenizer(text, return_tensors="pt")).logits)
    assert (scores[0] > scores[1]).all()


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        ({**rows(1)[0], "margin": "much"}, "rm", "margin"),
        ({**rows(1)[0], "rejected_response": ""}, "dpo", "rejected"),
        ({"messages": rows(1)[0]["messages"], "rejected_messages": "no"}, "dpo", "rejected_messages"),
    ],
)
def test_rows_that_cannot_be_compared_are_named(models: tuple[str, str], tmp_path: Path, row: Any, kind: str, said: str) -> None:
    data = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=said) as caught:
        run(models[0], tmp_path / "out", data, kind)
    assert "rows.jsonl:1" in str(caught.value)


def flags(values: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name, value in values.items():
        found += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return found


REWARD = "def even(completions, completion_ids, **columns):\n    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]\n"
# The likeliest token every time: what is drawn otherwise depends on who else is answered by the same process.
RANKS: dict[str, dict[str, Any]] = {
    "dpo": {"loss_type": ["bco_pair", "aot"]},
    "kto": {},
    "ppo": {"max_completion_length": 5, "top_k": 1, "num_mini_batches": 2, "kl_target": 0.1},
    "gkd": {"max_completion_length": 5, "top_k": 1},
}


@pytest.mark.e2e
@pytest.mark.parametrize("kind", RANKS)
def test_two_ranks_train_as_one_process_does(models: tuple[str, str], tmp_path: Path, kind: str) -> None:
    given = rows(16)
    if kind == "gkd":
        given = [{"messages": row["messages"]} for row in given]
    if kind == "kto":
        given = [{"messages": row["messages"], "label": number % 3 > 0} for number, row in enumerate(given)]
    data = write(tmp_path / "rows.jsonl", given)
    (tmp_path / "rewards.py").write_text(REWARD)
    more = {"ppo": {"reward_funcs": [f"{tmp_path / 'rewards.py'}:even"]}, "gkd": {"teacher_model": models[1]}}.get(kind, {})
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"ranks{ranks}"
        size = {"per_device_train_batch_size": 8 // ranks, "max_steps": 4, "torch_dtype": "float32"}
        words = flags({"rlhf_type": kind, **settings_of(models[0], out, data, **size, **RANKS[kind], **more)})
        inherited = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
        env = {**inherited, "NPROC_PER_NODE": str(ranks), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-m", "swift_core", "rlhf", *words], env=env, check=True, timeout=540)
        found.append(log_of(out))
    watched = ("loss", "grad_norm", "kl", "rewards/", "objective/", "policy/", "val/", "gkd/")
    for one, two in zip(*found, strict=True):
        names = [name for name in one if name.startswith(watched)]
        assert len(names) > 2 and [two[name] for name in names] == pytest.approx([one[name] for name in names], rel=2e-3, abs=2e-5)
