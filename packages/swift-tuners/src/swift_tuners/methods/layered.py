"""Tuners of PEFT that put something on chosen layers and need no more than a config."""

from __future__ import annotations

import re

from peft import BOFTConfig, FourierFTConfig, IA3Config, MissConfig, OFTConfig, PeftConfig, VeraConfig
from swift_core.errors import ModelError
from torch import nn

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


class VeraTuner(PeftTuner[VeraOptions]):
    """Trains two vectors for each layer around random matrices that all layers share."""

    name = "vera"
    options_class = VeraOptions

    def configure(self, model: nn.Module, options: VeraOptions) -> PeftConfig:
        """Return PEFT's VeRA config for this model."""
        return VeraConfig(
            r=options.vera_rank,
            projection_prng_key=options.vera_projection_prng_key,
            vera_dropout=options.vera_dropout,
            d_initial=options.vera_d_initial,
            **target_settings(model, options),
        )


class BoftTuner(PeftTuner[BoftOptions]):
    """Rotates the outputs of layers by products of sparse orthogonal matrices."""

    name = "boft"
    options_class = BoftOptions

    def configure(self, model: nn.Module, options: BoftOptions) -> PeftConfig:
        """Return PEFT's BOFT config for this model."""
        return BOFTConfig(
            boft_block_size=options.boft_block_size,
            boft_block_num=options.boft_block_num,
            boft_n_butterfly_factor=options.boft_n_butterfly_factor,
            boft_dropout=options.boft_dropout,
            **target_settings(model, options),
        )


class OftTuner(PeftTuner[OftOptions]):
    """Rotates the inputs of layers by block-diagonal orthogonal matrices."""

    name = "oft"
    options_class = OftOptions

    def configure(self, model: nn.Module, options: OftOptions) -> PeftConfig:
        """Return PEFT's OFT config for this model."""
        return OFTConfig(
            oft_block_size=options.oft_block_size,
            r=options.oft_rank,
            module_dropout=options.oft_dropout,
            coft=options.oft_coft,
            block_share=options.oft_block_share,
            **target_settings(model, options),
        )


class FourierFtTuner(PeftTuner[FourierFtOptions]):
    """Trains some coefficients of the Fourier transform of each update."""

    name = "fourierft"
    options_class = FourierFtOptions

    def configure(self, model: nn.Module, options: FourierFtOptions) -> PeftConfig:
        """Return PEFT's FourierFT config for this model."""
        # True starts the coefficients at zero, so that training starts as the base model.
        return FourierFTConfig(
            n_frequency=options.fourier_n_frequency, scaling=options.fourier_scaling, init_weights=True, **target_settings(model, options)
        )


class MissTuner(PeftTuner[MissOptions]):
    """Adds one small trained block to all parts of a weight (MiSS, the successor of Bone)."""

    name = "miss"
    options_class = MissOptions

    def configure(self, model: nn.Module, options: MissOptions) -> PeftConfig:
        """Return PEFT's MiSS config for this model."""
        return MissConfig(
            r=options.miss_rank,
            miss_dropout=options.miss_dropout,
            mini_r=options.miss_mini_rank,
            init_weights=True if options.init_weights == "true" else options.init_weights,
            **target_settings(model, options),
        )
