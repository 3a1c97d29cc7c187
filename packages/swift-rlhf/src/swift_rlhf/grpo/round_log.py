"""What a round of answers adds to the log."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from swift_rlhf.advantages import combine_rewards
from swift_rlhf.grpo.comparing import differs
from swift_rlhf.grpo.metrics import Meter
from swift_rlhf.grpo.rewarded import Rewarded


def log_round(meter: Meter, groups: Sequence[Rewarded], rewards: Tensor, names: Sequence[str], weights: Tensor) -> None:
    """Log rewards by function, lengths and turns.

    Args:
        meter: takes the numbers.
        groups: of the round.
        rewards: of their episodes, `[episodes, functions]`.
        names: of the reward functions.
        weights: of the reward functions.
    """
    add = meter.add_value
    total = combine_rewards(rewards, weights)
    for place, (name, column) in enumerate(zip(names, rewards.unbind(1), strict=True)):
        present = column[~column.isnan()]
        if len(present):
            add(f"reward/{name}/mean", float(present.mean()))
            add(f"reward/{name}/std", float(present.std(correction=min(1, len(present) - 1))))
        failed = sum(rewarded.failed[place] for rewarded in groups if rewarded.failed)
        if failed:
            add(f"reward/{name}/failed", failed)
    present = total[~total.isnan()]
    if len(present):
        add("reward", float(present.mean()))
    by_group = total.split([len(rewarded.rewards) for rewarded in groups])
    deviations = [float(one[~one.isnan()].std()) if (~one.isnan()).sum() > 1 else 0.0 for one in by_group]
    add("reward_std", sum(deviations) / len(deviations))
    dull = [not differs(one) for one in by_group]
    add("frac_reward_zero_std", sum(dull) / len(dull))
    add("reward_wait_seconds", max(rewarded.waited for rewarded in groups))
    _log_shape(meter, groups)


def _log_shape(meter: Meter, groups: Sequence[Rewarded]) -> None:
    add = meter.add_value
    lengths = [length for rewarded in groups for length in rewarded.lengths]
    cut = [truncated for rewarded in groups for truncated in rewarded.truncated]
    add("completions/mean_length", sum(lengths) / len(lengths))
    add("completions/min_length", min(lengths))
    add("completions/max_length", max(lengths))
    add("completions/clipped_ratio", sum(cut) / len(cut))
    turns = [count for rewarded in groups for count in rewarded.turns]
    if max(turns) > 1:
        add("completions/mean_turns", sum(turns) / len(turns))
    noted = [notes for rewarded in groups for notes in rewarded.info]
    for name in sorted({name for notes in noted for name, value in notes.items() if not isinstance(value, str)}):
        values = [float(notes[name]) for notes in noted if isinstance(notes.get(name), bool | int | float)]
        add(f"episodes/{name}", sum(values) / len(values))
