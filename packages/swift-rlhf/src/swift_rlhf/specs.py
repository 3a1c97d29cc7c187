"""What swift-rlhf registers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swift_core.specs import CommandSpec, DatasetSpec, EnvironmentSpec, RewardSpec, SchedulerSpec, TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RlhfSpec(TaskSpec):
    """An algorithm of `swift rlhf`; `target` is a function that takes the `RlhfConfig` and trains.

    Attributes:
        sections: fields of `RlhfConfig` with the settings it reads, besides those that `swift sft` has; others are refused.
        beta: its usual `--beta`, or None where that has no meaning.
        loss_types: values of `--loss_type`, the default first.
        several_losses: whether several of them can be added up.
        online: whether it trains on answers that the model writes during the run.
        best_metric: what names the best checkpoint where `--metric_for_best_model` does not.
        check: `module:function` that takes the config and returns the problems of its settings.
        dry_run: `module:function` that `--dry_run` calls with the config.
        loads_as: settings for later commands, such as the kind of head, written into every checkpoint.
    """

    sections: tuple[str, ...] = ()
    beta: float | None = None
    loss_types: tuple[str, ...] = ()
    several_losses: bool = False
    online: bool = False
    best_metric: str = "eval_loss"
    check: str | None = None
    dry_run: str | None = None
    loads_as: Mapping[str, Any] = field(default_factory=dict[str, Any])


_DPO_LOSSES = (
    *("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft"),
)


def _judged(name: str, summary: str, *sections: str, **more: Any) -> RlhfSpec:
    """Return an algorithm that learns from judged answers."""
    rows = "swift_rlhf.reward_model.run" if name == "rm" else "swift_rlhf.preference.run"
    return RlhfSpec(
        name=name,
        summary=summary,
        target=f"{rows}:train",
        sections=("judged", *sections),
        check="swift_rlhf.config.preference:preference_problems",
        dry_run=f"{rows}:show",
        **more,
    )


COMMANDS = (
    CommandSpec(
        name="rlhf",
        summary="align a model: preferences, reward models, PPO, GRPO, distillation",
        target="swift_rlhf.cli:run",
        config="swift_rlhf.config:RlhfConfig",
        dry_run="swift_rlhf.cli:dry_run",
        group="Alignment",
        distributed=True,
    ),
)

TASKS = (
    RlhfSpec(
        name="grpo",
        summary="answers of the model itself, better ones made likelier than worse ones to the same prompt",
        target="swift_rlhf.grpo.run:train",
        sections=("sampling", "rewarding", "turns", "service", "reference", "grpo", "chord"),
        beta=0.04,
        best_metric="eval_reward",
        loss_types=(*("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "gspo_token", "luspo", "cispo", "sapo", "vespo", "fipo", "gmpo", "real"),),
        online=True,
        check="swift_rlhf.config.grpo:grpo_problems",
        dry_run="swift_rlhf.grpo.run:show",
    ),
    RlhfSpec(
        name="ppo",
        summary="answers of the model itself, each token compared with what a critic expected",
        target="swift_rlhf.ppo.run:train",
        sections=("sampling", "rewarding", "turns", "ppo", "judged"),
        online=True,
        check="swift_rlhf.config.ppo:ppo_problems",
        dry_run="swift_rlhf.ppo.run:show",
    ),
    RlhfSpec(
        name="gkd",
        summary="the next-token distributions of a teacher, on answers of the model itself and on those of the data",
        target="swift_rlhf.gkd.run:train",
        sections=("sampling", "turns", "gkd", "judged"),
        beta=0.5,
        online=True,
        check="swift_rlhf.config.gkd:gkd_problems",
        dry_run="swift_rlhf.gkd.run:show",
    ),
    _judged(
        "dpo",
        "the better of two answers made likelier than the worse one, close to a reference model",
        *("reference", "pairs", "dpo"),
        beta=0.1,
        loss_types=_DPO_LOSSES,
        several_losses=True,
    ),
    _judged(
        "kto",
        "good answers made likelier and bad ones less likely, without pairs",
        *("reference", "kto"),
        beta=0.1,
        loss_types=("kto", "apo_zero_unpaired"),
    ),
    _judged(
        "cpo",
        "pairs without a reference model, held by the cost of the better answer",
        *("pairs", "reference_free"),
        beta=0.1,
        loss_types=("sigmoid", "hinge", "ipo", "simpo"),
    ),
    _judged("simpo", "pairs by log-probability per token, with a margin", "pairs", "reference_free", beta=2.0, loss_types=("simpo",)),
    _judged("orpo", "answers learned and compared by their odds in one go", beta=0.1, loss_types=("orpo",)),
    _judged(
        "rm",
        "a reward model: a number for how good an answer is, learned from pairs",
        "scoring",
        loads_as={"task_type": "seq_cls", "num_labels": 1, "problem_type": "regression"},
    ),
)

REWARDS = (
    RewardSpec(
        name="accuracy",
        summary="1 when the answer has the mathematical value of the column `solution` (math-verify)",
        target="swift_rlhf.rewards.math:accuracy",
        requires=("math_verify",),
        install="swift-rlhf[rewards]",
        process=True,
    ),
    RewardSpec(
        name="number",
        summary="1 when the final number of the answer equals that of the column `solution`",
        target="swift_rlhf.rewards.number:final_number_reward",
    ),
    RewardSpec(
        name="format",
        summary="1 when the answer is <think>...</think> followed by <answer>...</answer> and nothing else",
        target="swift_rlhf.rewards.format:think_answer_format",
    ),
    RewardSpec(
        name="react_format",
        summary="1 when the answer is one ReAct step: Thought, then Action and Action Input or Final Answer",
        target="swift_rlhf.rewards.format:react_format",
    ),
    RewardSpec(
        name="cosine",
        summary="accuracy weighed by length: short correct answers and long wrong ones are worth more",
        target="swift_rlhf.rewards.length:Cosine",
        requires=("math_verify",),
        install="swift-rlhf[rewards]",
        process=True,
    ),
    RewardSpec(
        name="repetition",
        summary="0 down to -1 the more n-grams of words come again",
        target="swift_rlhf.rewards.length:Repetition",
    ),
    RewardSpec(
        name="soft_overlong",
        summary="0 down to -1 near the length limit (DAPO)",
        target="swift_rlhf.rewards.length:SoftOverlong",
    ),
    RewardSpec(
        name="environment",
        summary="what the environment of --gym_env gave in all turns together",
        target="swift_rlhf.rewards.environment:environment",
    ),
    RewardSpec(
        name="judge",
        summary="score from 0 to 1 by a language model behind an OpenAI-compatible endpoint",
        target="swift_rlhf.rewards.judge:Judge",
    ),
    RewardSpec(
        name="reasoning_gym",
        summary="score of the task itself, for rows of the data set reasoning_gym",
        target="swift_rlhf.rewards.reasoning_gym:reasoning_gym",
        requires=("reasoning_gym",),
        install="swift-rlhf[reasoning-gym]",
        process=True,
    ),
)

SCHEDULERS = (
    SchedulerSpec(
        name="tools",
        summary="runs the tools of --tools that the model calls, until it answers without a call",
        target="swift_rlhf.rollout.schedulers:ToolCalling",
    ),
    SchedulerSpec(
        name="gym",
        summary="lets the model act in the environment of --gym_env; its rewards are the reward `environment`",
        target="swift_rlhf.rollout.gym:GymScheduler",
    ),
    SchedulerSpec(
        name="retry",
        summary="asks for another try when the number of the answer is not that of the column `solution`",
        target="swift_rlhf.rollout.retry:Retry",
    ),
)

ENVIRONMENTS = (
    EnvironmentSpec(
        name="number_guessing",
        summary="a hidden number from 1 to `highest`, found by guesses that are answered with higher or lower; to try things out",
        target="swift_rlhf.rollout.guessing:NumberGuessing",
    ),
)

DATASETS = (
    DatasetSpec(
        name="reasoning_gym",
        summary="tasks of reasoning-gym made by code, one subset each, with the reward `reasoning_gym`",
        target="swift_rlhf.rewards.reasoning_gym:rows",
        requires=("reasoning_gym",),
        install="swift-rlhf[reasoning-gym]",
        subsets=("chain_sum",),
        tags=("grpo", "reasoning"),
        task="grpo",
    ),
)
