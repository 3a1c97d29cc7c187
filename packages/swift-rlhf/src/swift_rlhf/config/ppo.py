"""Settings of PPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swift_core.config.fields import Section, option
from swift_core.config.parallel import mode_of
from swift_core.errors import Problem

from swift_rlhf.config.rewarding import reward_problems
from swift_rlhf.config.sampling import rollout_problems
from swift_rlhf.config.turns import append_problems


class PpoSection(Section):
    """PPO options."""

    num_ppo_epochs: int = option(4, "times that a round of answers is trained on", basic=True, ge=1)
    num_mini_batches: int = option(1, "optimizer steps that a round of answers is dealt to, in each of these times", ge=1)
    kl_coef: float = option(0.05, "price of a nat of distance from the reference model, taken off the reward", basic=True, ge=0)
    kl_target: float | None = option(None, "distance in nats per answer that --kl_coef adapts to; default: it stays as it is", gt=0)
    kl_horizon: int = option(10_000, "answers over which --kl_coef adapts to --kl_target", ge=1)
    cliprange: float = option(0.2, "how far the ratio of a token may be from 1", gt=0)
    cliprange_value: float = option(0.2, "how far a value may move from what it was; 0: as far as it likes", ge=0)
    vf_coef: float = option(0.1, "weight of the loss of values", ge=0)
    gamma: float = option(1.0, "discount of later rewards for each token", ge=0, le=1)
    lam: float = option(0.95, "advantages: 0 trusts the values, 1 the rewards", ge=0, le=1)
    whiten_rewards: bool = option(False, "scale the rewards of tokens to deviation 1")
    missing_eos_penalty: float | None = option(None, "taken off the reward of an answer that was cut off", ge=0)
    value_model: str | None = option(
        None, "model that says what to expect: a reward model or a sequence classifier with one output; default: a head on the policy"
    )


def ppo_problems(config: Any) -> list[Problem]:
    """Return the settings of PPO that cannot work together."""
    return [*rollout_problems(config), *append_problems(config), *reward_problems(config), *_own_problems(config)]


def _own_problems(config: Any) -> Iterator[Problem]:
    ppo = config.ppo
    if config.has_eval_data:
        fix = "remove it, and use `swift infer --val_dataset` on a checkpoint"
        yield Problem("--val_dataset", "there is no evaluation during PPO", fix)
    if ppo.kl_target is not None and not ppo.kl_coef:
        yield Problem("--kl_target", "adapts a price of 0, which stays 0", "for example --kl_coef 0.05")
    if config.given("kl_horizon") and ppo.kl_target is None:
        yield Problem("--kl_horizon", "has no effect on its own", "add --kl_target 6")
    if not ppo.kl_coef:
        names = [name for name in ("ref_model", "ref_model_type", "ref_model_revision", "ref_adapters") if config.given(name)]
        for name in names:
            yield Problem(f"--{name}", "has no effect with --kl_coef 0", "remove it, or raise --kl_coef")
    if config.sampling.use_vllm:
        yield Problem("--use_vllm", "PPO writes its answers in this process", "remove it")
    if mode_of(config) != "ddp" or config.parallel.sequence_parallel_size > 1:
        yield Problem("--rlhf_type ppo", "needs whole weights in every process", "remove --deepspeed, --fsdp and the parallel sizes")
