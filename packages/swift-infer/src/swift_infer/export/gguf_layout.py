"""What GGUF calls the parts of an architecture, and how it lays their numbers out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from swift_core.errors import ModelError
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """One architecture.

    Attributes:
        arch: its name in GGUF.
        interleaved: queries and keys are stored with the two halves of rotary positions interleaved.
        norm_offset: added to the weights of norms, which the model itself adds when it runs.
    """

    arch: MODEL_ARCH
    interleaved: bool = False
    norm_offset: float = 0.0


LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(MODEL_ARCH.LLAMA, interleaved=True),
    "mistral": Layout(MODEL_ARCH.LLAMA, interleaved=True),
    "qwen2": Layout(MODEL_ARCH.QWEN2),
    "qwen3": Layout(MODEL_ARCH.QWEN3),
    "gemma2": Layout(MODEL_ARCH.GEMMA2, norm_offset=1.0),
    "gemma3_text": Layout(MODEL_ARCH.GEMMA3, norm_offset=1.0),
}


def layout_of(config: Any) -> Layout:
    """Return the layout of a model.

    Raises:
        ModelError: when its architecture is not written.
    """
    layout = LAYOUTS.get(config.model_type)
    if layout is None:
        raise ModelError(
            f"GGUF files of {config.model_type!r} models are not written",
            fix=f"use a model of {', '.join(LAYOUTS)}, or the converter of llama.cpp",
        )
    return layout


def add_parameters(writer: GGUFWriter, config: Any) -> None:
    """Write the sizes of a model and how it counts positions."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    _add_positions(writer, config)
    if config.model_type.startswith("gemma"):
        if getattr(config, "attn_logit_softcapping", None):
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        if getattr(config, "final_logit_softcapping", None):
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
    window = getattr(config, "sliding_window", None)
    if window and (config.model_type.startswith("gemma") or getattr(config, "use_sliding_window", True)):
        writer.add_sliding_window(window)


def _add_positions(writer: GGUFWriter, config: Any) -> None:
    rope = _rope(config)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(rope.get("original_max_position_embeddings") or config.max_position_embeddings))
    elif kind not in ("default", "llama3"):
        raise ModelError(f"rotary positions of the kind {kind!r} are not written to GGUF", fix="use the converter of llama.cpp")


def _rope(config: Any) -> dict[str, Any]:
    rope: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    # Models with two kinds of attention layers have one entry for each; GGUF names the base of the global ones.
    return dict(rope["full_attention"]) if "full_attention" in rope else rope


def extra_tensors(config: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors that GGUF stores and the model computes from its config: the stretched frequencies of Llama 3."""
    if _rope(config).get("rope_type") != "llama3":
        return
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = 1.0 / (float(_rope(config)["rope_theta"]) ** (torch.arange(0, head_dim, 2).float() / head_dim))
    yield "rope_freqs.weight", plain / stretched


def arranged(name: str, tensor: Tensor, config: Any, layout: Layout) -> Tensor:
    """Return a tensor of the model as GGUF lays it out."""
    if layout.norm_offset and name.endswith("norm.weight"):
        return tensor + layout.norm_offset
    if layout.interleaved:
        if ".q_proj." in name:
            return _interleaved(tensor, config.num_attention_heads)
        if ".k_proj." in name:
            return _interleaved(tensor, config.num_key_value_heads)
    return tensor


def _interleaved(tensor: Tensor, heads: int) -> Tensor:
    rows = tensor.shape[0]
    return tensor.reshape(heads, 2, rows // heads // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
