"""Registries, config, command line, data, templates and the trainer of the swift toolbox."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift_core.cards.register import register_model
    from swift_core.config.training import PtConfig, SftConfig
    from swift_core.config.training import TrainingConfig as Seq2SeqTrainingArguments
    from swift_core.data.registered import register_dataset
    from swift_core.models.loading import get_model_processor, get_model_tokenizer
    from swift_core.tasks.sft import train as sft_main
    from swift_core.templates.chat import build_template as get_template
    from swift_core.train.seq2seq import Seq2SeqTrainer

__all__ = [
    "PtConfig",
    "Seq2SeqTrainer",
    "Seq2SeqTrainingArguments",
    "SftConfig",
    "get_model_processor",
    "get_model_tokenizer",
    "get_template",
    "register_dataset",
    "register_model",
    "sft_main",
]

# Imported at first use: `import swift_core` loads neither torch nor pydantic.
_EXPORTS = {
    "PtConfig": "swift_core.config.training:PtConfig",
    "SftConfig": "swift_core.config.training:SftConfig",
    "Seq2SeqTrainer": "swift_core.train.seq2seq:Seq2SeqTrainer",
    "Seq2SeqTrainingArguments": "swift_core.config.training:TrainingConfig",
    "get_model_processor": "swift_core.models.loading:get_model_processor",
    "get_model_tokenizer": "swift_core.models.loading:get_model_tokenizer",
    "get_template": "swift_core.templates.chat:build_template",
    "register_model": "swift_core.cards.register:register_model",
    "register_dataset": "swift_core.data.registered:register_dataset",
    "sft_main": "swift_core.tasks.sft:train",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'swift_core' has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__
