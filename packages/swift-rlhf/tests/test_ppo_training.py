"""PPO from settings to weights, on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from swift_core.errors import CheckpointError, ConfigError
from swift_core.registry import TASKS, TUNERS
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.parallel import make_world
from swift_rlhf.config import RlhfConfig
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.samples import Answer, AnswerGroup
from swift_rlhf.ppo.critic import FILE, ValueHead, attach
from swift_rlhf.ppo.samples import ValuedAnswer
from swift_rlhf.ppo.task import PpoTask
from transformers import AutoModelForCausalLM

REWARD = """
def even(completions, completion_ids, **columns):
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

def some(completions, completion_ids, solution, **columns):
    return [None if word == "red" else float(len(set(ids))) for ids, word in zip(completion_ids, solution)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(Path(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Path(tmp_path_factory.mktemp("data"))
    rows = [{"messages": [{"role": "user", "content": f"say {word}"}], "solution": word} for word in ("one", "two", "six", "ten", "red")]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "rewards.py").write_text(REWARD)
    return place


def config(folder: Path, files: Path, out: Path, **settings: Any) -> RlhfConfig:
    values: dict[str, Any] = {
        "rlhf_type": "ppo",
        "model": str(folder),
        "dataset": [str(files / "prompts.jsonl")],
        "reward_funcs": [f"{files / 'rewards.py'}:even"],
        "tuner_type": "full",
        "use_cpu": True,
        "output_dir": str(out),
        "add_version": False,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "temperature": 1.0,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "logging_steps": 1,
        "report_to": ["none"],
        "disable_tqdm": True,
        "save_strategy": "no",
        **settings,
    }
    return RlhfConfig(**values)


def trained(*args: Any, **settings: Any) -> list[dict[str, Any]]:
    made = config(*args, **settings)
    TASKS.load("ppo")(made)
    return [json.loads(line) for line in (Path(made.saving.output_dir) / "logging.jsonl").read_text("utf-8").splitlines()]


def test_the_reward_rises_and_the_critic_learns_what_to_expect(folder: Path, files: Path, tmp_path: Path) -> None:
    found = trained(
        folder, files, tmp_path, max_steps=28, per_device_train_batch_size=16, learning_rate=1.5e-2, num_ppo_epochs=2, vf_coef=1.0
    )
    scores = [line["objective/scores"] for line in found if "objective/scores" in line]
    assert len(scores) == 14 and sum(scores[-4:]) / 4 > sum(scores[:4]) / 4 + 0.1
    first, second = found[0], found[1]
    assert first["objective/kl"] == pytest.approx(0, abs=1e-4) and first["objective/kl_coef"] == 0.05
    assert first["val/ratio"] == pytest.approx(1, abs=1e-4) and first["policy/approxkl_avg"] < 1e-6 < second["policy/approxkl_avg"]
    assert first["policy/clipfrac_avg"] == 0 and "objective/kl" not in second
    losses = [line["loss/value_avg"] for line in found]
    assert sum(losses[-8:]) < sum(losses[:8]) / 2
    written = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text("utf-8").splitlines()]
    assert len(written) == 14 * 16 and {"prompt", "completion", "reward/even", "advantage"} <= set(written[0])


STATES: dict[str, dict[str, Any]] = {
    "several steps a round, adaptive price": {"num_mini_batches": 2, "num_ppo_epochs": 2, "kl_target": 0.01, "kl_horizon": 50},
    "no reference, whitened rewards": {"kl_coef": 0.0, "whiten_rewards": True, "missing_eos_penalty": 0.5},
}


@pytest.mark.parametrize("name", STATES)
def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, files: Path, tmp_path: Path, name: str) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, **STATES[name]}
    last = tmp_path / "checkpoint-6"
    whole = trained(folder, files, tmp_path, **settings)
    before = {file: (last / file).read_bytes() for file in ("model.safetensors", FILE)}
    state = json.loads((tmp_path / "checkpoint-3" / "stream.json").read_text("utf-8"))["stream"]
    assert state["order"] and (state["kl_coef"] != 0.05) is ("kl_target" in settings or settings["kl_coef"] == 0)
    shutil.rmtree(last)
    again = trained(folder, files, tmp_path, **settings, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert {file: (last / file).read_bytes() for file in before} == before
    names = [key for key in whole[-1] if key.startswith(("loss", "policy", "val/", "objective", "grad"))]
    assert len(names) > 5 and [whole[-1][key] for key in names] == [again[-1][key] for key in names]


def test_a_checkpoint_is_a_normal_model_and_needs_its_critic_to_go_on(folder: Path, files: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trained(folder, files, tmp_path, **settings)
    checkpoint = tmp_path / "checkpoint-1"
    loaded: Any = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    info = loaded[1]
    assert not info["missing_keys"] and not info["unexpected_keys"]
    manifest = next(checkpoint.glob("manifest*"))
    listed = json.loads(manifest.read_text())
    del listed["files"][FILE]
    manifest.write_text(json.dumps(listed))
    (checkpoint / FILE).unlink()
    with pytest.raises(CheckpointError, match=FILE):
        trained(folder, files, tmp_path, **settings, resume_from_checkpoint=str(checkpoint))


def valued() -> list[ValuedAnswer]:
    """Return answers, the second with a tool's reply in it."""
    found: list[ValuedAnswer] = []
    generator = torch.Generator().manual_seed(0)
    for number, mask in enumerate(([1, 1, 1], [1, 1, 0, 0, 1], [1])):
        ids = torch.randint(5, 300, (len(mask),), generator=generator).tolist()
        columns = (torch.rand(4, sum(mask), generator=generator) - 0.5).tolist()
        answer = Answer(ids, mask, [-6.0] * sum(mask), old_logps=[value - 6.2 for value in columns[0]])
        group = AnswerGroup.of([7, 8, 9, 10 + number], [answer], group=number, version=0, origin="a")
        found.append(ValuedAnswer.valued(group, dict(zip(("values", "advantages", "returns"), columns[1:], strict=True))))
    return found


def test_the_loss_is_that_of_the_formulas_whatever_the_layout(folder: Path, files: Path, tmp_path: Path) -> None:
    settings = config(folder, files, tmp_path)
    world = make_world(settings)
    given = valued()
    found: list[list[torch.Tensor]] = []
    for shared in (True, False):
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        head = ValueHead(model.config.hidden_size)
        torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
        attach(model, head)
        task = PpoTask(settings.ppo, head, Meter(world), temperature=0.7, shared=shared)
        loss = task.loss(model, task.collate(given, pad_token_id=0))
        loss.backward()
        expected = 0.0
        with torch.no_grad():
            for sample in given:
                answer = sample.answers[0]
                ids = torch.tensor([sample.input_ids + answer.ids])
                output = model(ids, output_hidden_states=True)
                logps = (output.logits[0] / 0.7).log_softmax(-1)
                places = [place for place, kept in enumerate(answer.mask) if kept]
                for number, place in enumerate(places):
                    at = len(sample.input_ids) + place - 1
                    ratio = float((logps[at, answer.ids[place]] - answer.old_logps[number]).exp())
                    advantage, target, old = sample.advantages[number], sample.returns[number], sample.values[number]
                    expected += max(-ratio * advantage, -min(max(ratio, 0.8), 1.2) * advantage)
                    value = float(output.hidden_states[-1][0, at].float() @ head.weight + head.bias)
                    near = old + min(max(value - old, -0.2), 0.2)
                    expected += 0.1 * max((value - target) ** 2, (near - target) ** 2) / 2
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
        found.append([weight.grad for weight in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_a_reward_model_is_reward_and_critic(folder: Path, files: Path, tmp_path: Path, tuner: str) -> None:
    if tuner not in TUNERS.names():
        pytest.skip("swift-tuners is not installed")
    pairs = tmp_path / "pairs.jsonl"
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "thank you"}]
    pairs.write_text(json.dumps({"messages": turns, "rejected_response": "no"}) + "\n")
    rm = {"model": str(folder), "dataset": [str(pairs)], "tuner_type": tuner, "use_cpu": True, "output_dir": str(tmp_path / "rm")}
    TASKS.load("rm")(RlhfConfig(rlhf_type="rm", add_version=False, max_steps=1, report_to=["none"], **rm))
    scorer = str(tmp_path / "rm" / "checkpoint-1")
    settings = {"reward_funcs": [], "reward_model": [scorer], "value_model": scorer, "max_steps": 2, "save_strategy": "steps"}
    found = trained(folder, files, tmp_path / "out", **settings, vf_coef=1.0)
    assert found[0]["reward/rm/checkpoint-1/mean"] == pytest.approx(found[0]["objective/scores"])
    critic = load_file(tmp_path / "out" / "checkpoint-2" / FILE)
    assert any("score" in name for name in critic) and any("layers" in name for name in critic)
    with pytest.raises(ConfigError, match="num_ppo_epochs"):
        RlhfConfig(rlhf_type="dpo", model="m", dataset=["d"], tuner_type="full", num_ppo_epochs=2)


def test_answers_without_a_reward_teach_nothing(folder: Path, files: Path, tmp_path: Path) -> None:
    found = trained(folder, files, tmp_path, reward_funcs=[f"{files / 'rewards.py'}:some"], max_steps=1, per_device_train_batch_size=5)
    written = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text("utf-8").splitlines()]
    left_out = [row for row in written if row["prompt"].count("red")]
    assert len(left_out) == 1 and left_out[0]["reward/some"] is None and left_out[0]["advantage"] == 0
    assert found[0]["trained_tokens"] == sum(row["tokens"] for row in written) - left_out[0]["tokens"]


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"reward_funcs": []}, "--reward_funcs"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "--kl_target"),
        ({"kl_horizon": 100}, "--kl_horizon"),
        ({"ref_model": "x", "kl_coef": 0.0}, "--ref_model"),
        ({"beta": 0.1}, "--beta"),
        ({"max_turns": 3}, "--max_turns"),
        ({"num_generations": 4}, "--num_generations"),
        ({"precompute_ref_log_probs": True}, "--precompute_ref_log_probs"),
        ({"fsdp": "fsdp2"}, "--rlhf_type ppo"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], where: str) -> None:
    values: dict[str, Any] = {"model": "m", "dataset": ["d"], "tuner_type": "full", "reward_funcs": ["format"], **settings}
    with pytest.raises(ConfigError) as caught:
        RlhfConfig(rlhf_type="ppo", **values)
    assert where in {problem.where for problem in caught.value.problems}
