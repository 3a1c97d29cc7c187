"""`swift doctor run RUN_DIR`: what the log of a run says about how it learns, and what to change."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from swift_core.cli.findings import Finding
from swift_core.errors import NotFoundError

Lines = Sequence[Mapping[str, Any]]
_FEW = 8


def examine_run(folder: Path) -> list[Finding]:
    """Look at a run folder and return the findings in order.

    Raises:
        NotFoundError: when there is no log.
    """
    log, args = folder / "logging.jsonl", folder / "args.json"
    if not log.is_file():
        raise NotFoundError(f"{folder} has no logging.jsonl", fix="give the folder of a run, such as output/MODEL/v0-20260101-120000")
    lines = [line for text in log.read_text(encoding="utf-8").splitlines() if (line := _parsed(text))]
    settings = _parsed(args.read_text(encoding="utf-8")) if args.is_file() else {}
    return explain(lines, settings)


def _parsed(text: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(text)
    except ValueError:
        return {}  # a line that a killed process left half written
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def explain(lines: Lines, settings: Mapping[str, Any]) -> list[Finding]:
    """Return what the log lines of a run say.

    Args:
        lines: of logging.jsonl.
        settings: of the run, by flat name.
    """
    steps = [line for line in lines if "loss" in line]
    if not steps:
        return [Finding("note", "log", "no step was logged yet", "wait, or lower --logging_steps")]
    last = steps[-1]
    found = [Finding("ok", "log", f"{len(steps)} lines, up to step {last['step']} of {last.get('total_steps', '?')}")]
    found += _gradient(steps)
    if column(steps, "reward"):
        found += [*_reward(steps), *_objective(steps, settings), *_answers(steps), *_policy(steps, settings), *_engine(steps)]
    else:
        found += _loss(steps, lines)
    if all(finding.level == "ok" for finding in found):
        found.append(Finding("ok", "verdict", "nothing looks wrong"))
    return found


def column(lines: Lines, name: str) -> list[float]:
    """Return the numbers of one name, in order."""
    return [float(line[name]) for line in lines if isinstance(line.get(name), int | float)]


def _quarters(values: Sequence[float]) -> tuple[float, float]:
    """Return the means of the first and the last quarter."""
    part = max(1, len(values) // 4)
    return statistics.fmean(values[:part]), statistics.fmean(values[-part:])


def _late(lines: Lines, name: str) -> float | None:
    values = column(lines, name)
    return _quarters(values)[1] if values else None


def _gradient(lines: Lines) -> Iterator[Finding]:
    norms = column(lines, "grad_norm")
    if norms and max(norms) == 0:
        fix = "look at frac_reward_zero_std and the mask (`swift data preview`); check --target_modules and the freeze settings"
        yield Finding("fail", "gradient", "the gradient is 0 in every step: nothing is learned", fix)
    elif norms and max(norms) > 20 * max(statistics.median(norms), 1e-12):
        found = f"the largest gradient norm {max(norms):.3g} is {max(norms) / max(statistics.median(norms), 1e-12):.0f} times the usual one"
        yield Finding("note", "gradient", found, "lower --learning_rate or --max_grad_norm; a single jump may come from an odd sample")


def _loss(lines: Lines, everything: Lines) -> Iterator[Finding]:
    losses = column(lines, "loss")
    first, last = _quarters(losses)
    if losses and max(map(abs, losses)) == 0:
        yield Finding("fail", "loss", "the loss is 0 in every step", "no token is trained: look at the mask with `swift data preview`")
    elif len(losses) >= _FEW and last > 0.98 * first:
        yield Finding("note", "loss", f"it went from {first:.4g} to {last:.4g}: no learning", "raise --learning_rate, or train longer")
    else:
        yield Finding("ok", "loss", f"from {first:.4g} to {last:.4g}")
    held_out = column(everything, "eval_loss")
    if len(held_out) > 2 and held_out[-1] > 1.05 * min(held_out):
        found = f"evaluation loss {held_out[-1]:.4g}, at best {min(held_out):.4g}: the data are being learned by heart"
        yield Finding("note", "evaluation", found, "--load_best_model_at_end true, --early_stop_interval 3, more data, or fewer epochs")


def _reward(lines: Lines) -> Iterator[Finding]:
    rewards = column(lines, "reward")
    first, last = _quarters(rewards)
    part = max(1, len(rewards) // 4)
    noise = statistics.pstdev(rewards[:part]) + statistics.pstdev(rewards[-part:])
    if len(rewards) < _FEW:
        yield Finding("note", "reward", f"{first:.3f} to {last:.3f}: too few lines to tell", "train longer")
    elif last - first > noise / part**0.5:
        yield Finding("ok", "reward", f"rises from {first:.3f} to {last:.3f}")
    else:
        word = "falls" if first - last > noise / part**0.5 else "does not rise"
        fix = "see the lines below for the cause; if there is none: raise --learning_rate, or take more answers a step"
        yield Finding("note", "reward", f"{word}: {first:.3f} to {last:.3f}", fix)
    for name in sorted({key for line in lines for key in line if key.startswith("reward/") and key.endswith("/mean")}):
        values = column(lines, name)
        if len(values) >= _FEW and max(values) == min(values):
            fix = "look at completions.jsonl: the function may not find what it looks for"
            yield Finding("note", name.split("/")[1], f"this reward is {values[0]:g} in every step", fix)
    for name in sorted({key for line in lines for key in line if key.startswith("reward/") and key.endswith("/failed")}):
        failed = sum(column(lines, name))
        yield Finding(
            "note", name.split("/")[1], f"this reward failed or took too long for {failed:g} answers", "raise --reward_timeout, or mend it"
        )


def _objective(lines: Lines, settings: Mapping[str, Any]) -> Iterator[Finding]:
    dull, reward = _late(lines, "frac_reward_zero_std"), _late(lines, "reward")
    if dull is not None and dull > 0.5 and reward is not None:
        spread = column(lines, "reward")
        why = "the prompts are solved" if reward > 0.7 * max(spread) and reward > 0.5 else "no answer is better than the others"
        fix = "harder prompts" if why == "the prompts are solved" else "easier prompts, or a reward with more shades"
        ways = "--dynamic_sample true, more --num_generations, or a higher --temperature"
        yield Finding("fail" if dull > 0.95 else "note", "groups", f"{dull:.0%} of the groups have equal rewards: {why}", f"{fix}; {ways}")
    losses, ratios = column(lines, "loss"), column(lines, "policy/ratio")
    on_policy = bool(ratios) and max(abs(ratio - 1) for ratio in ratios) < 1e-3
    if losses and max(map(abs, losses)) < 1e-3:
        found = "it is 0: advantages of a group add up to 0 and the ratio is 1, so this says nothing; the gradient is what counts"
        yield Finding("ok", "loss", found)
    clipped = column(lines, "clip_ratio/region")
    if clipped and max(clipped) == 0 and on_policy and settings.get("num_iterations", 1) == 1:
        yield Finding("ok", "clipping", "it is 0: answers are trained on once, right after they were written, so there is nothing to clip")
    elif clipped and (_late(lines, "clip_ratio/region") or 0) > 0.3:
        yield Finding(
            "note",
            "clipping",
            f"{_late(lines, 'clip_ratio/region'):.0%} of the tokens are clipped",
            "lower --learning_rate or --num_iterations",
        )
    unfilled = _late(lines, "dynamic_sample/unfilled")
    if unfilled:
        yield Finding(
            "note",
            "dynamic sampling",
            f"{unfilled:.1f} groups a round found no replacement",
            "raise --max_resample_times, or other prompts",
        )


def _answers(lines: Lines) -> Iterator[Finding]:
    cut = _late(lines, "completions/clipped_ratio")
    if cut is not None and cut > 0.2:
        level = "fail" if cut > 0.95 else "note"
        fix = "raise --max_completion_length, add the reward soft_overlong, or --overlong_filter true"
        yield Finding(level, "lengths", f"{cut:.0%} of the answers are cut off before they end", fix)
    lengths = column(lines, "completions/mean_length")
    if len(lengths) >= _FEW:
        first, last = _quarters(lengths)
        if last < 0.3 * first:
            yield Finding(
                "note", "lengths", f"answers shrink from {first:.0f} to {last:.0f} tokens", "look whether a reward pays for being short"
            )


def _policy(lines: Lines, settings: Mapping[str, Any]) -> Iterator[Finding]:
    entropies = column(lines, "entropy_estimate")
    if len(entropies) >= _FEW:
        first, last = _quarters(entropies)
        if last < 0.2 * first:
            fix = "raise --epsilon_high (clip-higher), --temperature or --beta, or lower --learning_rate"
            yield Finding("note", "entropy", f"it falls from {first:.3g} to {last:.3g}: answers become all alike", fix)
    distance = _late(lines, "kl")
    if distance is not None and distance > 1:
        yield Finding(
            "note", "kl", f"the policy is {distance:.3g} nats a token from the reference", "lower --learning_rate, or raise --beta"
        )
    rate = _late(lines, "learning_rate")
    if rate is not None and rate < 1e-7 and settings.get("lr_scheduler_type") != "constant":
        yield Finding("note", "learning rate", f"it is down to {rate:.1g}", "more steps, or --lr_scheduler_type constant")


def _engine(lines: Lines) -> Iterator[Finding]:
    share = _late(lines, "rollout_correction/ess_token")
    if share is not None and share < 0.9:
        found = f"sampler and trainer disagree: only {share:.0%} of the tokens count in effect (rollout_correction/ess_token)"
        fix = "--rollout_importance_sampling_mode token_truncate; the same number type on both sides; less staleness"
        yield Finding("note", "engine", found, fix)
    waited, wrote = _late(lines, "reward_wait_seconds"), _late(lines, "rollout_seconds")
    if waited and wrote and waited > 0.3 * wrote:
        found = f"{waited / wrote:.0%} of the time for answers is spent on waiting for rewards"
        yield Finding(
            "note", "rewards", found, "make them faster, --reward_processes 8, or lower --rollout_batch_size so that they overlap"
        )
    stale = _late(lines, "staleness")
    if stale is not None:
        yield Finding("ok", "staleness", f"answers are {stale:.1f} optimizer steps old on average")
