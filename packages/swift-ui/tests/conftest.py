"""A stand-in for the tuner of swift-tuners, where only this package is installed: the form is made from whatever tuners there are."""

from __future__ import annotations

from swift_core.config.fields import Section, option
from swift_core.registry import TUNERS
from swift_core.specs import TunerSpec


class LoraOptions(Section):
    """LoRA options."""

    lora_rank: int = option(8, "rank", basic=True, ge=1)
    lora_alpha: int = option(32, "alpha", basic=True, ge=1)
    target_modules: list[str] = option(["all-linear"], "layers", basic=True)


if "lora" not in TUNERS:
    import sys

    sys.modules["lora_stand_in"] = sys.modules[__name__]
    TUNERS.register(TunerSpec(name="lora", summary="stand-in", target="lora_stand_in:LoraOptions", options="lora_stand_in:LoraOptions"))
