"""Tuners that train tokens in front of the input: prompt tuning, prefix tuning, P-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, PromptTuningInit
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from swift_core.errors import CheckpointError, ModelError
from torch import nn

from swift_tuners import adapters
from swift_tuners.methods.peft_tuner import OptionsT, PeftTuner, check_base, task_type
from swift_tuners.options import PrefixTuningOptions, PromptTuningOptions, PTuningOptions

ENCODER = "prompt_encoder.safetensors"
_ADAPTER = "default"


class VirtualTokenTuner(PeftTuner[OptionsT]):
    """What the three have in common.

    PEFT saves the tokens alone, which is what inference needs. The network that makes some of them while training is saved
    beside them, so that training can go on.
    """

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the tokens in PEFT's format, and the network that makes them."""
        super().save(model, folder)
        encoder = cast(Any, model).prompt_encoder[_ADAPTER]
        save_file({name: value.contiguous().cpu() for name, value in encoder.state_dict().items()}, Path(folder) / ENCODER)

    def load(self, model: nn.Module, folder: Path, *, trainable: bool) -> nn.Module:
        """Return the model with saved tokens in front.

        Raises:
            NotFoundError: when the folder holds no adapter.
            CheckpointError: when the adapter does not fit the model, or training cannot go on with it.
        """
        if not trainable:
            return super().load(model, folder, trainable=False)
        check_base(model, self.name)
        adapters.check_adapter_folder(Path(folder))
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        adapted = adapters.attach(model, config)
        self.restore(adapted, folder)
        return adapted

    def restore(self, model: nn.Module, folder: Path) -> None:
        """Put the network and the tokens back into a prepared model, in place.

        Raises:
            CheckpointError: when they do not fit, or only the tokens were saved.
        """
        file = Path(folder) / ENCODER
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: only the tokens were saved, for inference", fix="start a new run")
        try:
            cast(Any, model).prompt_encoder[_ADAPTER].load_state_dict(load_file(file))
        except (RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{file} does not fit: {error}", fix="use the settings the run was started with") from error

    def task(self, model: nn.Module) -> str:
        """Return PEFT's name of the model's task.

        Raises:
            ModelError: when PEFT puts no tokens in front of such a model.
        """
        found = task_type(model)
        if found is None:
            raise ModelError(f"a {type(model).__name__} takes no virtual tokens", fix="use lora")
        return found


class PromptTuner(VirtualTokenTuner[PromptTuningOptions]):
    """Trains the embeddings of tokens in front of the input."""

    name = "prompt_tuning"
    options_class = PromptTuningOptions

    def configure(self, model: nn.Module, options: PromptTuningOptions) -> PeftConfig:
        """Return PEFT's prompt tuning config for this model."""
        settings: dict[str, Any] = {"num_virtual_tokens": options.num_virtual_tokens, "task_type": self.task(model)}
        if options.prompt_tuning_init_text:
            source = getattr(getattr(model, "config", None), "_name_or_path", "")
            if not source or not Path(source).is_dir():
                raise ModelError(
                    "--prompt_tuning_init_text needs the tokenizer, which is not in the model's folder",
                    fix="leave it out to start at random",
                )
            settings |= {
                "prompt_tuning_init": PromptTuningInit.TEXT,
                "prompt_tuning_init_text": options.prompt_tuning_init_text,
                "tokenizer_name_or_path": source,
            }
        return PromptTuningConfig(**settings)


class PrefixTuner(VirtualTokenTuner[PrefixTuningOptions]):
    """Trains keys and values in front of those of the input, in every layer."""

    name = "prefix_tuning"
    options_class = PrefixTuningOptions

    def configure(self, model: nn.Module, options: PrefixTuningOptions) -> PeftConfig:
        """Return PEFT's prefix tuning config for this model."""
        if not options.prefix_projection and options.encoder_hidden_size is not None:
            raise ModelError("--encoder_hidden_size is the width of a network that is switched off", fix="--prefix_projection true")
        width = options.encoder_hidden_size or cast(Any, model).config.get_text_config().hidden_size
        return PrefixTuningConfig(
            num_virtual_tokens=options.num_virtual_tokens,
            prefix_projection=options.prefix_projection,
            encoder_hidden_size=cast(int, width if options.prefix_projection else None),  # PEFT declares no None, and takes it
            task_type=self.task(model),
        )


class PTuner(VirtualTokenTuner[PTuningOptions]):
    """Trains a network that makes the embeddings of tokens in front of the input."""

    name = "p_tuning"
    options_class = PTuningOptions

    def configure(self, model: nn.Module, options: PTuningOptions) -> PeftConfig:
        """Return PEFT's P-tuning config for this model."""
        return PromptEncoderConfig(
            num_virtual_tokens=options.num_virtual_tokens,
            encoder_reparameterization_type=cast(Any, options.encoder_reparameterization_type),
            encoder_hidden_size=options.encoder_hidden_size,
            encoder_num_layers=options.encoder_num_layers,
            encoder_dropout=options.encoder_dropout,
            task_type=self.task(model),
        )
