"""Which reference model a run has, and loading it."""

from __future__ import annotations

from pathlib import Path

from swift_core.config.sections import ModelSection
from swift_core.errors import ModelError
from swift_core.hub.adapters import adapter_folders
from swift_core.models.loading import load_model, load_tokenizer, resolve_model_folder
from swift_core.train.parallel import training_device
from swift_core.train.tuning import load_tuner, weights_dtype
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from swift_rlhf.config.command import RlhfConfig
from swift_rlhf.preference.reference import Reference, SecondModel, WithoutAdapters, base_is_reference


def build_reference(config: RlhfConfig, folder: Path, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> Reference:
    """Return the reference: the trained model without its adapters where that is the model as it was, else a second one.

    Args:
        config: settings of the run.
        folder: local folder of the trained model.
        tokenizer: its tokenizer.
        model: the trained model, prepared.

    Raises:
        ModelError: when the reference cannot be loaded, or reads other tokens.
    """
    task = config.task
    same = not task.ref_model and not task.ref_adapters and not config.loading.adapters
    if same and base_is_reference(model):
        return WithoutAdapters()
    loading = reference_section(config)
    found = resolve_model_folder(loading) if task.ref_model else folder
    if task.ref_model:
        check_tokens("--ref_model", task.ref_model, config.loading, found, tokenizer)
    # New tokens of the reference must start as those of the policy did.
    set_seed(config.training.seed)
    device = training_device(use_cpu=config.launch.use_cpu)
    dtype = weights_dtype(config, folder, device=device)
    reference: nn.Module = load_model(loading, found, dtype=dtype, task_type="causal_lm", quantization=config.quantization, device=device)
    tuner = load_tuner("lora" if config.tuner.tuner_type == "full" else config.tuner.tuner_type) if loading.adapters else None
    for adapter in adapter_folders(loading):
        assert tuner is not None
        reference = tuner.load(reference, adapter, trainable=False)
    return SecondModel(reference)


def reference_section(config: RlhfConfig) -> ModelSection:
    """Return how the reference is loaded: as the trained model where nothing else was said."""
    task = config.task
    changes: dict[str, object] = {"adapters": task.ref_adapters or ([] if task.ref_model else config.loading.adapters)}
    if task.ref_model:
        changes |= {"model": task.ref_model, "model_type": task.ref_model_type, "model_revision": task.ref_model_revision}
    return config.loading.model_copy(update=changes)


def reference_folders(config: RlhfConfig, folder: Path) -> list[Path]:
    """Return the folders whose files define the reference."""
    loading = reference_section(config)
    return [resolve_model_folder(loading) if config.task.ref_model else folder, *adapter_folders(loading)]


def check_tokens(flag: str, name: str, loading: ModelSection, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a second model that reads other tokens than the trained one.

    Args:
        flag: that names it.
        name: what was given.
        loading: of the trained model.
        folder: of the second model.
        tokenizer: of the trained model.

    Raises:
        ModelError: at the first word that has another number.
    """
    other = load_tokenizer(folder, trust_remote_code=loading.trust_remote_code, new_special_tokens=loading.special_tokens)
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    wrong = next((word for word, number in ours.items() if theirs.get(word) != number), None)
    if wrong is not None:
        raise ModelError(
            f"{flag} {name} reads other tokens: {wrong!r} is {ours[wrong]} for the trained model and {theirs.get(wrong, 'unknown')} for it",
            fix="use a model of the same family",
        )
