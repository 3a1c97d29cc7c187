"""Settings of GRPO and its relatives."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, Literal, get_args

from swift_core.config.fields import Section, option
from swift_core.errors import Problem

from swift_rlhf.config.chord import chord_problems
from swift_rlhf.config.preference import following_problems
from swift_rlhf.config.rewarding import reward_problems
from swift_rlhf.config.sampling import rollout_problems
from swift_rlhf.config.service import service_problems
from swift_rlhf.config.turns import turns_problems

Correction = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "geometric_truncate", "geometric_mask"]
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)


class GrpoSection(Section):
    """GRPO options."""

    num_generations: int = option(8, "answers to each prompt, which are compared with one another", basic=True, ge=2)
    num_generations_eval: int = option(1, "answers to each prompt of the evaluation data", ge=1)
    eval_temperature: float | None = option(
        None, "temperature of an evaluation; 0 takes the likeliest token; default: as --temperature", ge=0
    )
    num_iterations: int = option(1, "times that answers are trained on", ge=1)
    steps_per_generation: int | None = option(
        None, "forward passes that one round of answers is for; default: as --gradient_accumulation_steps, one optimizer step", ge=1
    )
    generation_batch_size: int | None = option(None, "answers of one round on all devices, instead of --steps_per_generation", ge=1)
    epsilon: float | None = option(None, "how far a ratio may fall below 1; default: 0.2, or as usual for the loss", basic=True, ge=0)
    epsilon_high: float | None = option(None, "how far a ratio may rise above 1; default: as --epsilon", ge=0)
    delta: float | None = option(None, "bound of the unclipped ratio (two-sided clipping), above 1 + epsilon_high", gt=1)
    dual_clip: float | None = option(None, "bound of the loss of bad answers, above 1; 3 is usual", gt=1)
    dynamic_clip: bool = option(False, "let unlikely tokens move further (DCPO)")
    cispo_cap: float = option(5.0, "loss cispo: largest ratio", ge=1)
    tau_pos: float = option(1.0, "loss sapo: sharpness for good answers", gt=0)
    tau_neg: float = option(1.05, "loss sapo: sharpness for bad answers", gt=0)
    real_tau: float = option(0.5, "loss real: temperature", gt=0)
    fipo_decay_rate: float = option(32.0, "loss fipo: tokens after which the future counts half", gt=0)
    fipo_clip_range: float = option(0.2, "loss fipo: how far the factor may be from 1", ge=0)
    fipo_clip_high_only: bool = option(True, "loss fipo: the factor may only rise")
    fipo_safety_threshold: float = option(4.0, "loss fipo: ratio above which bad answers are not punished harder", gt=0)
    importance_sampling_level: Literal["token", "sequence", "sequence_token"] | None = option(
        None, "whose ratio is clipped: token, sequence (GSPO) or sequence_token; default: as the loss says"
    )
    advantage_estimator: Literal["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"] = option(
        "grpo", "what a reward is compared with: its group, the others of its group (rloo), or the batch"
    )
    scale_rewards: Literal["group", "batch", "none", "gdpo"] | None = option(
        None, "what advantages are divided by; gdpo scales each reward function by itself; default: by the estimator"
    )
    kl_in_reward: bool | None = option(None, "take the distance from the reference off the reward instead of adding it to the loss")
    kl_estimator: Literal["k1", "k2", "k3"] = option("k3", "estimate of that distance, where it is in the loss")
    dynamic_sample: bool = option(False, "replace groups whose rewards are all equal (DAPO)", basic=True)
    max_resample_times: int = option(3, "further rounds in which such groups are replaced", ge=0)
    overlong_filter: bool = option(False, "do not train answers that were cut off at --max_completion_length")
    top_entropy_quantile: float = option(1.0, "train only this share of the tokens, those with the highest entropy", gt=0, le=1)
    entropy_coef: float = option(0.0, "weight of a bonus for the entropy of tokens, estimated from those that were drawn", ge=0)
    log_entropy: bool = option(False, "log the exact entropy of tokens; the estimate that is always logged costs nothing")
    rollout_importance_sampling_mode: Correction | None = option(
        None,
        "correct for differences between sampler and trainer: the weight of a token, of an answer (product over its tokens) or its "
        "geometric mean, cut off (truncate) or left out (mask) above the threshold",
    )
    rollout_importance_sampling_threshold: float = option(2.0, "largest weight of that correction", ge=1)
    off_policy_sequence_mask_delta: float | None = option(
        None, "drop bad answers that the policy has moved away from by so many nats a token", gt=0
    )


def grpo_problems(config: Any) -> list[Problem]:
    """Return the settings of GRPO that cannot work together."""
    return [*_batch_problems(config), *_loss_problems(config), *_other_problems(config)]


def world_size() -> int:
    """Return how many processes train, as the launcher tells or will tell them."""
    return int(os.environ.get("WORLD_SIZE") or int(os.environ.get("NPROC_PER_NODE") or 1) * int(os.environ.get("NNODES") or 1))


def round_size(config: Any) -> int:
    """Return how many answers one round has on all devices."""
    training, grpo = config.training, config.grpo
    if grpo.generation_batch_size is not None:
        return grpo.generation_batch_size
    steps = grpo.steps_per_generation or training.gradient_accumulation_steps or 1
    return training.per_device_train_batch_size * steps * world_size()


def answers_of_sample(config: Any) -> int:
    """Return how many answers of a group go through a forward pass together at least: they share the prompt."""
    return math.gcd(config.grpo.num_generations, config.training.per_device_train_batch_size)


def _batch_problems(config: Any) -> Iterator[Problem]:
    training, grpo = config.training, config.grpo
    step = training.per_device_train_batch_size * (training.gradient_accumulation_steps or 1) * world_size()
    total = round_size(config)
    if grpo.steps_per_generation is not None and grpo.generation_batch_size is not None:
        yield Problem("--generation_batch_size", "says the same as --steps_per_generation", "keep one of the two")
    elif total % grpo.num_generations:
        larger = -(-total // grpo.num_generations) * grpo.num_generations
        what = f"a round of answers has {total} (per_device_train_batch_size x steps x devices), which {grpo.num_generations} do not divide"
        yield Problem("--num_generations", what, f"answers are counted, so for example --generation_batch_size {larger}")
    elif total % step:
        what = f"a round of {total} answers is not a number of optimizer steps of {step}"
        yield Problem("--generation_batch_size", what, f"a multiple of {math.lcm(step, grpo.num_generations)}")
    if config.task.loss_type == ["real"] and answers_of_sample(config) != grpo.num_generations:
        what = "real compares the answers of a whole group"
        yield Problem("--loss_type real", what, f"--per_device_train_batch_size {grpo.num_generations}, or a multiple of it")


def _loss_problems(config: Any) -> Iterator[Problem]:
    grpo, loss = config.grpo, (config.task.loss_type or ["grpo"])[0]
    owners = {"cispo_cap": "cispo", "tau_pos": "sapo", "tau_neg": "sapo", "real_tau": "real"}
    owners |= {name: "fipo" for name in GrpoSection.model_fields if name.startswith("fipo_")}
    for name, owner in owners.items():
        if config.given(name) and loss != owner:
            yield Problem(f"--{name}", f"has no effect with --loss_type {loss}", f"remove it, or add --loss_type {owner}")
    clips = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "gspo_token", "luspo", "fipo")
    for name in ("delta", "dual_clip", "dynamic_clip"):
        if config.given(name) and loss not in clips:
            yield Problem(f"--{name}", f"has no meaning for --loss_type {loss}", "remove it")
    if grpo.epsilon_high is not None and loss in ("cispo", "sapo", "vespo", "real"):
        fix = "--cispo_cap 5" if loss == "cispo" else "remove it"
        yield Problem("--epsilon_high", f"--loss_type {loss} does not clip at a distance from 1", fix)
    yield from _bound_problems(config, loss)


def _bound_problems(config: Any, loss: str) -> Iterator[Problem]:
    grpo = config.grpo
    high = grpo.epsilon_high if grpo.epsilon_high is not None else grpo.epsilon if grpo.epsilon is not None else 0.2
    if grpo.delta is not None and grpo.delta <= 1 + high:
        yield Problem("--delta", f"{grpo.delta} is not above 1 + epsilon_high {high}", "for example 4")
    if loss == "real" and config.task.beta and not grpo.kl_in_reward:
        yield Problem("--beta", "real has no place for a KL in the loss", "--beta 0, or --kl_in_reward true")
    if loss == "real" and grpo.entropy_coef:
        yield Problem("--entropy_coef", "real scores groups, which have no place for single tokens", "remove it")
    if loss == "real" and grpo.rollout_importance_sampling_mode:
        yield Problem("--rollout_importance_sampling_mode", "real cannot weigh single answers", "remove it")
    if loss == "gmpo" and (grpo.rollout_importance_sampling_mode or "").startswith("token"):
        yield Problem("--rollout_importance_sampling_mode", "gmpo weighs answers", "sequence_truncate, or another of answers")
    if loss in ("vespo", "gmpo", "real") and grpo.importance_sampling_level is not None:
        yield Problem("--importance_sampling_level", f"--loss_type {loss} has a ratio of its own", "remove it")
    if grpo.kl_in_reward and not config.task.beta:
        yield Problem("--kl_in_reward", "there is no distance to take off with --beta 0", "remove it, or raise --beta")
    if config.given("kl_estimator") and (grpo.kl_in_reward or not config.task.beta):
        yield Problem("--kl_estimator", "acts only where the distance is in the loss", "remove it")


def _other_problems(config: Any) -> Iterator[Problem]:
    grpo = config.grpo
    yield from rollout_problems(config)
    yield from following_problems(config)
    if config.reference.sync_ref_model and not config.task.beta:
        yield Problem("--sync_ref_model", "there is no reference with --beta 0", "remove it, or --beta 0.04")
    if config.reference.precompute_ref_log_probs:
        yield Problem("--precompute_ref_log_probs", "the answers are not there before the run", "remove it")
    yield from turns_problems(config)
    yield from service_problems(config)
    yield from chord_problems(config)
    if hasattr(config, "data") and not config.has_eval_data:
        for name in ("num_generations_eval", "eval_temperature"):
            if config.given(name):
                yield Problem(f"--{name}", "there is no evaluation data", "add --val_dataset FILE or --split_dataset_ratio 0.05")
    if config.given("max_resample_times") and not grpo.dynamic_sample:
        yield Problem("--max_resample_times", "has no effect on its own", "add --dynamic_sample true")
    yield from reward_problems(config)
