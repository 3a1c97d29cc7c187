"""Settings of imitation beside reinforcement learning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swift_core.config.fields import Section, option
from swift_core.errors import Problem


class ChordSection(Section):
    """CHORD options."""

    chord_sft_dataset: list[str] = option([], "conversations with answers of experts that are imitated beside GRPO, written like --dataset")
    chord_sft_per_device_train_batch_size: int | None = option(
        None, "answers of experts in a forward pass on one device; default: as many as --per_device_train_batch_size has prompts", ge=1
    )
    chord_enable_phi_function: bool = option(False, "weigh tokens of experts by p(1-p): less where the model is sure, or far off")
    chord_mu_warmup_steps: int = option(0, "steps in which the weight of imitation rises to its peak", ge=0)
    chord_mu_decay_steps: int = option(0, "steps after that in which it falls to its valley", ge=0)
    chord_mu_peak: float = option(0.9, "largest weight of imitation", ge=0, le=1)
    chord_mu_valley: float = option(0.05, "weight of imitation in the end", ge=0, le=1)


def chord_problems(config: Any) -> Iterator[Problem]:
    """Yield the settings of CHORD that cannot work."""
    chord: ChordSection = config.chord
    if not chord.chord_sft_dataset:
        for name in ChordSection.model_fields:
            if config.given(name) and hasattr(config, "data"):  # Python code may bring experts itself
                yield Problem(f"--{name}", "there are no experts to imitate", "add --chord_sft_dataset FILE")
        return
    if chord.chord_mu_valley > chord.chord_mu_peak:
        what = f"{chord.chord_mu_valley} is above --chord_mu_peak {chord.chord_mu_peak}"
        yield Problem("--chord_mu_valley", what, "a smaller value, such as 0.05")
    if config.task.loss_type == ["real"]:
        yield Problem("--chord_sft_dataset", "real scores groups, which have no place for single answers", "choose another --loss_type")
