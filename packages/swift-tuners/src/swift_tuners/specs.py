"""What swift-tuners registers. A further method is one file in `methods`, its options in `config.py` and one row here."""

from __future__ import annotations

from swift_core.specs import CommandSpec, TunerSpec

TUNERS = (
    TunerSpec(
        name="lora",
        summary="train low-rank matrices beside the frozen weights (LoRA, rsLoRA, DoRA, PiSSA, OLoRA)",
        target="swift_tuners.methods.lora:LoraTuner",
        options="swift_tuners.config:LoraOptions",
        mergeable=True,
    ),
)

COMMANDS = (
    CommandSpec(
        name="merge-lora",
        summary="fold an adapter into its base model and check that the answers stay the same",
        target="swift_tuners.cli:merge_lora",
        config="swift_tuners.config:MergeConfig",
        group="Adapters",
    ),
)
