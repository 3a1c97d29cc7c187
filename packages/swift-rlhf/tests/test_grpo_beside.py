"""What stands beside the update of GRPO: evaluation, experts, engines in the process, adapters folded in, rewards by data set."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from swift_core.errors import ConfigError, DataError, EngineError, TrainingError
from swift_core.models.loading import get_model_tokenizer
from swift_core.protocols import Capabilities, EncodedSample, TokenLogprob
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.tuning import saver_for
from swift_rlhf.config.chord import ChordSection
from swift_rlhf.config.python import GRPOConfig
from swift_rlhf.grpo.experts import Experts
from swift_rlhf.grpo.samples import Answer, AnswerGroup
from swift_rlhf.grpo.trainer import GRPOTrainer
from swift_rlhf.losses import chord_mu
from swift_rlhf.losses.entropy import negative_entropy
from swift_rlhf.rewards.functions import Reward, RewardSample
from swift_rlhf.rewards.pool import RewardPool
from swift_rlhf.rollout.colocate import ColocatedEngine
from swift_rlhf.rollout.folding import folded
from swift_rlhf.rollout.play import TurnRequest
from swift_rlhf.rollout.sampling import Sampling
from swift_rlhf.rollout.weights import TrainedWeights

ROWS = [{"messages": [{"role": "user", "content": f"say {word}"}], "solution": word} for word in ("one", "two", "six", "ten")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(Path(tmp_path_factory.mktemp("model")))


def even(completions: list[str], *, completion_ids: list[list[int]], **columns: Any) -> list[float | None]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def trained(
    folder: Path, out: Path, rows: Any = ROWS, held_out: Any = (), reward: Any = even, after: Any = lambda trainer: None, **settings: Any
) -> GRPOTrainer:
    model, tokenizer = get_model_tokenizer(folder)
    assert model is not None
    beside = {name: settings.pop(name) for name in ("expert_dataset", "engine", "ref_model") if name in settings}
    usual: dict[str, Any] = {
        **{"max_completion_length": 4, "num_generations": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "beta": 0.0},
        **{"logging_steps": 1, "report_to": ["none"], "disable_tqdm": True, "use_cpu": True, "add_version": False},
        **{"save_strategy": "no", "output_dir": str(out), "lr_scheduler_type": "constant", "max_steps": 2},
    }
    config = GRPOConfig(**{**usual, **settings})
    with closing(GRPOTrainer(model, reward, config, rows, held_out, processing_class=tokenizer, **beside)) as trainer:
        trainer.train()
        after(trainer)
    return trainer


def lines(out: Path, name: str = "logging.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]


# ---- evaluation -------------------------------------------------------------------------------------------------------


def test_new_answers_to_other_prompts_choose_the_best_checkpoint(folder: Path, tmp_path: Path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "num_generations_eval": 3}
    again: list[dict[str, float]] = []
    trainer = trained(folder, tmp_path, held_out=ROWS[:2], after=lambda trainer: again.append(trainer.evaluate()), **settings)
    found = [line for line in lines(tmp_path) if "eval_reward" in line]
    assert [line["step"] for line in found] == [1, 2] and all(line["eval_reward"] == line["eval_reward/even/mean"] for line in found)
    written = lines(tmp_path, "eval_completions.jsonl")
    assert len(written) == 3 * 2 * 3 and {row["origin"] for row in written} == {"eval_dataset[0]", "eval_dataset[1]"}
    best = max(found, key=lambda line: line["eval_reward"])
    assert trainer.args.metric_for_best_model == "eval_reward" and trainer.state.best_global_step == best["step"]
    # The same weights are judged the same again.
    assert again[0]["eval_reward"] == found[-1]["eval_reward"]
    assert (tmp_path / "images" / "reward.png").stat().st_size > 5000


def test_an_evaluation_needs_prompts(folder: Path, tmp_path: Path) -> None:
    def after(trainer: GRPOTrainer) -> None:
        with pytest.raises(DataError, match="no prompts to evaluate on"):
            trainer.evaluate()

    trainer = trained(folder, tmp_path, after=after, max_steps=1)
    with pytest.raises(TrainingError, match="rewards of new answers"):
        trainer.task.measure(trainer.model, None)


# ---- experts ----------------------------------------------------------------------------------------------------------


def test_experts_weigh_as_much_as_the_schedule_says() -> None:
    groups = [AnswerGroup.of([1], [Answer([2, 3], [1, 1], [0.0, 0.0])], group=number, version=0, origin="") for number in range(3)]
    samples = [EncodedSample([1, 2, 3], [-100, 2, 3], str(number)) for number in range(5)]
    section = ChordSection(chord_mu_warmup_steps=4, chord_mu_peak=0.8, chord_mu_decay_steps=4, chord_mu_valley=0.0)
    experts = Experts(samples, section, per_step=4, weigh=lambda group: 10, seed=0)
    dealt: list[AnswerGroup] = []
    for step in range(10):
        dealt = experts.attach(groups, step=step)
        mu = chord_mu(step, warmup_steps=4, decay_steps=4, peak=0.8, valley=0.0)
        assert [len(group.experts) for group in dealt] == [2, 1, 1]
        assert dealt[0].expert_scale * 8 / 30 == pytest.approx(mu) and dealt[0].policy_scale == pytest.approx(1 - mu)
    other = Experts(samples, section, per_step=4, weigh=lambda group: 10, seed=0)
    other.load_state_dict({"given": 36})
    assert [each.origin for group in other.attach(groups, step=9) for each in group.experts] == [
        each.origin for group in dealt for each in group.experts
    ]


def test_experts_are_imitated_beside_the_update(folder: Path, tmp_path: Path) -> None:
    _, tokenizer = get_model_tokenizer(folder, load_model=False)
    ids = tokenizer.encode("the expert says so", add_special_tokens=False)
    experts = [EncodedSample(ids, [-100, *ids[1:]], "expert")]
    settings = {"chord_mu_peak": 0.5, "chord_mu_valley": 0.5, "max_steps": 6, "chord_sft_per_device_train_batch_size": 2}
    # No answer is better than another, so that experts alone move the weights.
    trained(folder, tmp_path, reward=lambda completions, **columns: [1.0] * len(completions), expert_dataset=experts, **settings)
    found = lines(tmp_path)
    losses = [line["chord/sft_loss"] for line in found]
    assert losses[-1] < losses[0] - 0.3 and all(line["frac_reward_zero_std"] == 1 for line in found)
    assert found[0]["loss"] == pytest.approx(0.5 * losses[0], rel=1e-3)


# ---- an engine of another package in the process ------------------------------------------------------------------------


class Beside:
    """An engine with weights of its own, as swift-infer's are."""

    name = "beside"
    capabilities = Capabilities(token_ids=True, logprobs=True, weights=True)

    def __init__(self) -> None:
        self.events: list[str] = []
        self.version = 0

    async def ainfer(self, request: Any, config: Any) -> Any:
        ids = [(config.seed + place) % 50 + 5 for place in range(config.max_tokens)]
        logps = [TokenLogprob(token, -4.0) for token in ids]
        versions = [(self.version, config.max_tokens)]
        return SimpleNamespace(choices=[SimpleNamespace(token_ids=ids, logprobs=logps, finish_reason="length", versions=versions)])

    def update_weights(self, weights: Any, *, version: int, running: str = "wait") -> None:
        self.events.append(f"weights {version}")
        self.version = version
        assert len(weights) > 5

    def sleep(self, level: int) -> None:
        self.events.append(f"sleep {level}")

    def wake(self) -> None:
        self.events.append("wake")

    def close(self) -> None:
        self.events.append("close")


def test_an_engine_beside_the_model_gets_its_weights_and_sleeps_between(folder: Path, tmp_path: Path) -> None:
    model, _ = get_model_tokenizer(folder)
    beside = Beside()
    engine = ColocatedEngine(beside, TrainedWeights(model, lambda: saver_for(model)), [2], lambda ids: str(ids), sleep_level=1)
    trained(folder, tmp_path, engine=engine)
    assert beside.events == ["weights 0", "sleep 1", "wake", "weights 1", "sleep 1", "close"]
    assert {row["version"] for row in lines(tmp_path, "completions.jsonl")} == {0, 1}


def test_an_engine_that_cannot_take_weights_is_refused() -> None:
    weak = SimpleNamespace(name="weak", capabilities=Capabilities(token_ids=True))
    with pytest.raises(EngineError, match="weak cannot take"):
        ColocatedEngine(weak, None, [], str)


def test_adapters_are_folded_in_and_out_without_a_trace(folder: Path) -> None:
    tuners = pytest.importorskip("swift_tuners")
    model, tokenizer = get_model_tokenizer(folder)
    model = tuners.Swift.prepare_model(model, tuners.LoraConfig(r=4, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.eval()
    ids = torch.tensor([tokenizer.encode("some words to read")])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trains = {name: weight.requires_grad for name, weight in model.named_parameters()}
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with folded(model):
            found = model(input_ids=ids).logits
            with model.disable_adapter():
                assert torch.equal(model(input_ids=ids).logits, found)
        again = model(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5) and torch.equal(again, expected)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert trains == {name: weight.requires_grad for name, weight in model.named_parameters()}
    settings, tensors = TrainedWeights(model, lambda: saver_for(model)).adapter() or ({}, {})
    assert settings["r"] == 4 and tensors
    whole = dict(TrainedWeights(model, lambda: saver_for(model)).whole())
    plain, _ = get_model_tokenizer(folder)
    plain.load_state_dict(whole, strict=False)
    with torch.no_grad():
        assert torch.allclose(plain.eval()(input_ids=ids).logits, expected, atol=1e-5)
    assert set(whole) <= set(plain.state_dict())


# ---- rewards ------------------------------------------------------------------------------------------------------------


def test_rewards_hold_for_the_files_that_they_are_given() -> None:
    reward = Reward(name="a", function=even, channels=frozenset({"gsm8k"}))
    for origin, channel, holds in [
        ("data/gsm8k.jsonl:3", None, True),
        ("gsm8k:3", None, True),
        ("data/other.jsonl:3", None, False),
        ("data/gsm8k.jsonl:3", "other", False),
        ("x.jsonl:3", "gsm8k", True),
    ]:
        assert reward.applies(RewardSample(completion="", origin=origin, channel=channel)) is holds


def test_groups_are_rewarded_while_others_are_written(folder: Path, tmp_path: Path) -> None:
    seen = threading.Event()

    def told(completions: list[str], **columns: Any) -> list[float | None]:
        seen.set()
        return [float(len(text)) for text in completions]

    class Watching:
        """The second prompt is answered only once the answers to the first are being rewarded."""

        async def answer(self, request: Any, sampling: Any, *, seed: int, version: int) -> Any:
            import asyncio

            from swift_rlhf.rollout.episodes import Generation

            nonlocal last
            if request.prompt_ids == last:
                while not seen.is_set():
                    await asyncio.sleep(0.005)
            ids = [seed % 50 + 5, 7]
            return Generation(ids, "x" * (seed % 9), "length", [-1.0, -1.0], version)

        def generate(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("asked one by one")

        def update(self, version: int) -> None: ...

        def close(self) -> None: ...

    _, tokenizer = get_model_tokenizer(folder, load_model=False)
    from swift_core.templates.chat import ChatTemplate

    last = ChatTemplate(tokenizer).encode_prompt([{"role": "user", "content": "say two"}], None)
    trained(folder, tmp_path, rows=ROWS[:2], reward=told, engine=Watching(), max_steps=1, train_dataloader_shuffle=False)
    assert seen.is_set() and len(lines(tmp_path, "completions.jsonl")) == 8


def test_a_function_is_called_by_one_thread_at_a_time() -> None:
    inside = threading.Lock()

    def alone(completions: list[str], **columns: Any) -> list[float | None]:
        assert inside.acquire(blocking=False)
        threading.Event().wait(0.01)
        inside.release()
        return [1.0] * len(completions)

    with RewardPool([Reward(name="alone", function=alone)]) as pool:
        waiting = [pool.submit([RewardSample(completion="x")]) for _ in range(4)]
        assert all(float(each.result().values[0, 0]) == 1 for each in waiting)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"chord_sft_dataset": ["x"], "chord_mu_peak": 0.1, "chord_mu_valley": 0.5}, "--chord_mu_valley"),
        ({"chord_sft_dataset": ["x"], "loss_type": "real"}, "--chord_sft_dataset"),
    ],
)
def test_settings_of_experts_that_cannot_work_are_refused(settings: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        GRPOConfig(**{"per_device_train_batch_size": 8, "beta": 0.0, **settings})


def test_requests_of_an_engine_beside_are_sampled_as_the_run_says(folder: Path) -> None:
    model, _ = get_model_tokenizer(folder)
    engine = ColocatedEngine(Beside(), TrainedWeights(model, lambda: saver_for(model)), [2], str)
    answers = engine.generate([TurnRequest([1], 3), TurnRequest([2], 2)], Sampling(temperature=0.7), seed=1, version=5)
    assert [len(answer.token_ids) for answer in answers] == [3, 2] and answers[0].logprobs == [-4.0] * 3


def test_the_estimate_of_the_entropy_has_its_gradient() -> None:
    logits = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    logps = logits.log_softmax(-1)
    exact = -(logps.exp() * logps).sum()
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    mean = (logps.exp().detach() * negative_entropy(logps)).sum()
    (found,) = torch.autograd.grad(mean, logits)
    assert torch.allclose(found, -expected) and mean.item() == pytest.approx(-exact.item())


def test_a_bonus_alone_makes_answers_less_sure(folder: Path, tmp_path: Path) -> None:
    def same(completions: list[str], **columns: Any) -> list[float | None]:
        return [1.0] * len(completions)

    trained(folder, tmp_path, reward=same, entropy_coef=0.5, max_steps=8, temperature=0.7)
    found = [line["entropy_estimate"] for line in lines(tmp_path)]
    assert sum(found[-3:]) > sum(found[:3]) and lines(tmp_path)[0]["frac_reward_zero_std"] == 1


def test_a_reference_that_follows_is_where_the_model_was(folder: Path, tmp_path: Path) -> None:
    found: dict[bool, list[float]] = {}
    for follows in (False, True):
        out = tmp_path / str(follows)
        reference, _ = get_model_tokenizer(folder)
        moves = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0} if follows else {}
        trained(folder, out, beta=0.1, ref_model=reference, max_steps=3, save_strategy="steps", save_steps=3, **moves)
        found[follows] = [line["kl"] for line in lines(out)]
    assert found[False][2] > 1e-4 and max(found[True]) < 1e-6 and found[True][0] == pytest.approx(found[False][0])
    assert (tmp_path / "True" / "checkpoint-3" / "reference.safetensors").is_file()
    with pytest.raises(ConfigError, match="no second model"):
        trained(folder, tmp_path, beta=0.1, sync_ref_model=True)


@pytest.mark.parametrize("settings", [{"sync_ref_model": True}, {"precompute_ref_log_probs": True}, {"ref_model_sync_steps": 4}])
def test_settings_of_a_reference_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        GRPOConfig(**{"per_device_train_batch_size": 8, "beta": 0.0, **settings})
