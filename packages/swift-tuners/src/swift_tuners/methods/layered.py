"""Tuners of PEFT that put something on chosen layers and need no more than a config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from peft import BOFTConfig, FourierFTConfig, IA3Config, MissConfig, OFTConfig, PeftConfig, VeraConfig
from swift_core.errors import ModelError
from torch import nn

from swift_tuners.config import TargetOptions
from swift_tuners.methods.peft_tuner import PeftTuner, target_settings
from swift_tuners.options import BoftOptions, FourierFtOptions, Ia3Options, MissOptions, OftOptions, VeraOptions
from swift_tuners.targets import check_module_names, matches

_FEED_FORWARD = re.compile(r"(^|\.)(mlp|ffn|feed_forward|feedforward|ff|experts|fc\d|dense_h_to_4h|dense_4h_to_h)(\.|$)")


class Ia3Tuner(PeftTuner[Ia3Options]):
    """Scales the outputs of attention layers and the inputs of feed-forward layers by trained vectors."""

    name = "ia3"
    options_class = Ia3Options

    def configure(self, model: nn.Module, options: Ia3Options) -> PeftConfig:
        """Return PEFT's IA3 config for this model."""
        settings = target_settings(model, options)
        check_module_names(model, options.feedforward_modules, "--feedforward_modules")
        targets = settings["target_modules"]
        chosen = [
            name
            for name, _ in model.named_modules()
            if name and (re.fullmatch(targets, name) if isinstance(targets, str) else matches(name, targets))
        ]
        inner = options.feedforward_modules
        feed_forward = [name for name in chosen if (matches(name, inner) if inner else _FEED_FORWARD.search(name))]
        if inner and not feed_forward:
            raise ModelError("--feedforward_modules names no layer that is adapted", fix="name them in --target_modules as well")
        # PEFT wants them to be among the targets by name.
        return IA3Config(**{**settings, "target_modules": chosen}, feedforward_modules=feed_forward)


class LayeredTuner(PeftTuner[TargetOptions]):
    """A tuner that needs no more than PEFT's config: its options under PEFT's names, and where it goes."""

    def __init__(
        self, name: str, options_class: type[TargetOptions], config_class: type[PeftConfig], settings: Mapping[str, str], **fixed: Any
    ) -> None:
        """Keep what makes the config: PEFT's setting -> option, and settings that are always the same."""
        self.name = name
        self.options_class = options_class
        self.config_class = config_class
        self.settings = settings
        self.fixed = fixed

    def configure(self, model: nn.Module, options: TargetOptions) -> PeftConfig:
        """Return PEFT's config for this model."""
        values = {theirs: getattr(options, ours) for theirs, ours in self.settings.items()}
        return self.config_class(**values, **self.fixed, **target_settings(model, options))


# PEFT's setting -> option
_VERA = {"r": "vera_rank", "vera_dropout": "vera_dropout", "projection_prng_key": "vera_projection_prng_key", "d_initial": "vera_d_initial"}
_BOFT = {f"boft_{name}": f"boft_{name}" for name in ("block_size", "block_num", "n_butterfly_factor", "dropout")}
_OFT = {
    **{"oft_block_size": "oft_block_size", "r": "oft_rank", "module_dropout": "oft_dropout"},
    **{"coft": "oft_coft", "block_share": "oft_block_share"},
}
_FOURIERFT = {"n_frequency": "fourier_n_frequency", "scaling": "fourier_scaling"}
_MISS = {"r": "miss_rank", "miss_dropout": "miss_dropout", "mini_r": "miss_mini_rank", "init_weights": "start"}

vera = partial(LayeredTuner, "vera", VeraOptions, VeraConfig, _VERA)
boft = partial(LayeredTuner, "boft", BoftOptions, BOFTConfig, _BOFT)
oft = partial(LayeredTuner, "oft", OftOptions, OFTConfig, _OFT)
# True starts the coefficients at zero, so that training starts as the base model.
fourierft = partial(LayeredTuner, "fourierft", FourierFtOptions, FourierFTConfig, _FOURIERFT, init_weights=True)
miss = partial(LayeredTuner, "miss", MissOptions, MissConfig, _MISS)
