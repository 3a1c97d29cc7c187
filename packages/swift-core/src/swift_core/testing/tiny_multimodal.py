"""Tiny multimodal models with real processors, made on disk from their configuration classes, so that tests need no network."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import PreTrainedTokenizerBase

from swift_core.models.quiet import quiet_transformers
from swift_core.testing.tiny import make_tiny_tokenizer

_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'video' %}VIDEO"
    "{% elif part['type'] == 'audio' %}AUDIO{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Takes lists of parts only, puts the media first, and writes the end-of-sequence token nowhere.
_VICUNA = (
    "{% for message in messages %}{{ '' if message['role'] == 'system' else message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '[IMG]' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '[/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{% if message['content'] is string %}{{ message['content'] + eos_token }}{% else %}{{ message['content'][0]['text'] + eos_token }}"
    "{% endif %}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is not string and message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "use_sliding_window": False,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
}
_SIGLIP = {**_CLIP, "model_type": "siglip_vision_model", "image_size": 56, "vision_use_head": False}


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a tiny model consists of: names of transformers classes and the arguments they are made with."""

    config: Any
    model: str
    processor: Any


def _chatml(image: str = "", video: str = "", audio: str = "") -> str:
    return _CHATML.replace("IMAGE", image).replace("VIDEO", video).replace("AUDIO", audio)


def _tokenizer(special: dict[str, str], template: str, *, bos: str | None = None, eos: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tiny tokenizer with further special tokens, each also an attribute of that name."""
    base: Any = make_tiny_tokenizer()
    extra = [token for token in special.values() if token not in base.get_vocab()]
    base.add_special_tokens({"additional_special_tokens": extra})
    made: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer,
        bos_token=bos,
        eos_token=eos or "<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=special,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    return made


def _text(tokenizer: PreTrainedTokenizerBase, model_type: str = "qwen2", **further: Any) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {**_TEXT, "model_type": model_type, "vocab_size": len(tokenizer), **ids, **further}


def _id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found: Any = tokenizer.convert_tokens_to_ids(token)
    return found


_PATCHES = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 12}, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}


def _qwen_vl(kind: str) -> _Parts:
    special = {
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    }
    template = _chatml("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")
    tokenizer = _tokenizer(special, template)
    prefix = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    vision: dict[str, Any] = {"depth": 2, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    rope = {**_MROPE}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    elif kind == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [1]}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 64}
        vision |= {"deepstack_visual_indexes": [0, 1]}
        rope |= {"mrope_interleaved": True}
    text = {**_text(tokenizer, f"{kind}_text", rope_parameters=rope), "head_dim": 8}
    config = _class(f"{prefix}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=_id(tokenizer, "<|image_pad|>"),
        video_token_id=_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
    )
    videos = "Qwen3VLVideoProcessor" if kind == "qwen3_vl" else "Qwen2VLVideoProcessor"
    processor = _class(f"{prefix}Processor")(
        image_processor=_class("Qwen2VLImageProcessor")(**_PATCHES),
        tokenizer=tokenizer,
        video_processor=_class(videos)(**_PATCHES, min_frames=2),
        chat_template=template,
    )
    return _Parts(config, f"{prefix}ForConditionalGeneration", processor)


def _glm4v(kind: str) -> _Parts:
    names = ("begin_of_image", "end_of_image", "begin_of_video", "end_of_video")
    special = {name: f"<|{name}|>" for name in names} | {"image_token": "<|image|>", "video_token": "<|video|>"}
    template = _chatml("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>")
    tokenizer = _tokenizer(special, template)
    config = transformers.Glm4vConfig(
        text_config=_text(tokenizer, "glm4v_text", rope_parameters=_MROPE),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "num_heads": 4,
            "image_size": 56,
            "patch_size": 14,
            "out_hidden_size": 32,
            "intermediate_size": 64,
        },
        image_token_id=_id(tokenizer, "<|image|>"),
        video_token_id=_id(tokenizer, "<|video|>"),
        image_start_token_id=_id(tokenizer, "<|begin_of_image|>"),
        image_end_token_id=_id(tokenizer, "<|end_of_image|>"),
        video_start_token_id=_id(tokenizer, "<|begin_of_video|>"),
        video_end_token_id=_id(tokenizer, "<|end_of_video|>"),
    )
    processor = transformers.Glm4vProcessor(
        image_processor=_class("Glm4vImageProcessor")(**_PATCHES),
        tokenizer=tokenizer,
        video_processor=_class("Glm4vVideoProcessor")(**_PATCHES),
        chat_template=template,
    )
    return _Parts(config, "Glm4vForConditionalGeneration", processor)


def _llava(kind: str) -> _Parts:
    tokenizer = _tokenizer({"image_token": "<image>"}, _VICUNA)
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    shared: dict[str, Any] = {
        "vision_config": _CLIP,
        "text_config": _text(tokenizer, "llama"),
        "image_token_index": _id(tokenizer, "<image>"),
        "vision_feature_layer": -1,
    }
    made = {"tokenizer": tokenizer, "patch_size": 14, "vision_feature_select_strategy": "default", "chat_template": _VICUNA}
    if kind == "llava":
        config: Any = transformers.LlavaConfig(**shared, image_seq_length=4)
        images = _class("CLIPImageProcessor")(**size)
        return _Parts(
            config,
            "LlavaForConditionalGeneration",
            transformers.LlavaProcessor(image_processor=images, num_additional_image_tokens=1, **made),
        )
    pinpoints = [[28, 56], [56, 28], [56, 56]]
    config = transformers.LlavaNextConfig(**shared, image_grid_pinpoints=pinpoints)
    images = _class("LlavaNextImageProcessor")(**size, image_grid_pinpoints=pinpoints)
    processor = transformers.LlavaNextProcessor(image_processor=images, num_additional_image_tokens=1, **made)
    return _Parts(config, "LlavaNextForConditionalGeneration", processor)


def _llava_onevision(kind: str) -> _Parts:
    template = _chatml("<image>\\n", "<video>\\n").replace("<image>\\n", "{{ '<image>\\n' }}").replace("<video>\\n", "{{ '<video>\\n' }}")
    tokenizer = _tokenizer({"image_token": "<image>", "video_token": "<video>"}, template)
    pinpoints = [[56, 112], [112, 56], [112, 112]]
    config = transformers.LlavaOnevisionConfig(
        vision_config=_SIGLIP,
        text_config=_text(tokenizer),
        image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"),
        image_grid_pinpoints=pinpoints,
    )
    square = {"size": {"height": 56, "width": 56}}
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=_class("LlavaOnevisionImageProcessor")(**square, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        video_processor=_class("LlavaOnevisionVideoProcessor")(**square),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    return _Parts(config, "LlavaOnevisionForConditionalGeneration", processor)


def _internvl(kind: str) -> _Parts:
    special = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    template = _chatml("{{ '<IMG_CONTEXT>\\n' }}", "{{ '<video>\\n' }}")
    tokenizer = _tokenizer(special, template)
    config = transformers.InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": [56, 56],
            "patch_size": [14, 14],
        },
        text_config=_text(tokenizer),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    square = {"size": {"height": 56, "width": 56}}
    processor = transformers.InternVLProcessor(
        image_processor=_class("GotOcr2ImageProcessor")(**square, crop_to_patches=True, min_patches=1, max_patches=2),
        tokenizer=tokenizer,
        video_processor=_class("InternVLVideoProcessor")(**square),
        image_seq_length=4,
        chat_template=template,
    )
    return _Parts(config, "InternVLForConditionalGeneration", processor)


def _gemma3(kind: str) -> _Parts:
    special = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
        "start_of_turn": "<start_of_turn>",
        "end_of_turn": "<end_of_turn>",
    }
    tokenizer = _tokenizer(special, _GEMMA, bos="<|im_start|>", eos="<end_of_turn>")
    config = transformers.Gemma3Config(
        text_config=_text(tokenizer, "gemma3_text", head_dim=8, sliding_window=64, layer_types=["sliding_attention", "full_attention"]),
        vision_config=_SIGLIP,
        mm_tokens_per_image=4,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
    )
    processor = transformers.Gemma3Processor(
        image_processor=_class("Gemma3ImageProcessor")(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        chat_template=_GEMMA,
        image_seq_length=4,
    )
    return _Parts(config, "Gemma3ForConditionalGeneration", processor)


def _idefics3(kind: str) -> _Parts:
    names = ("<image>", "<video>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    special = {f"special_{number}": name for number, name in enumerate(names)}
    special |= {f"row_{row}_{col}": f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)}
    tokenizer = _tokenizer(special, _IDEFICS, eos="<end_of_utterance>")
    prefix = "SmolVLM" if kind == "smolvlm" else "Idefics3"
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    }
    config = _class(f"{prefix}Config")(
        vision_config=vision,
        text_config=_text(tokenizer, "llama"),
        image_token_id=_id(tokenizer, "<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    further: dict[str, Any] = {}
    if kind == "smolvlm":
        sampling = {"fps": 1, "max_frames": 4}
        further["video_processor"] = _class("SmolVLMVideoProcessor")(size={"longest_edge": 56}, video_sampling=sampling, **_frame(56))
    processor = _class(f"{prefix}Processor")(
        image_processor=_class(f"{prefix}ImageProcessor")(**sizes),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=_IDEFICS,
        **further,
    )
    return _Parts(config, f"{prefix}ForConditionalGeneration", processor)


def _frame(edge: int) -> dict[str, Any]:
    return {"max_image_size": {"longest_edge": edge}}


def _mistral3(kind: str) -> _Parts:
    special = {"image_token": "[IMG]", "image_break": "[IMG_BREAK]", "image_end": "[IMG_END]", "begin": "[INST]", "end": "[/INST]"}
    tokenizer = _tokenizer(special | {"bos": "<s>", "eos": "</s>"}, _MISTRAL, bos="<s>", eos="</s>")
    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
        "head_dim": 8,
    }
    text = _text(tokenizer, "mistral", head_dim=8, sliding_window=None)
    merge = 2 if kind == "mistral3" else 1
    shared: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": _id(tokenizer, "[IMG]")}
    if kind == "mistral3":
        config: Any = transformers.Mistral3Config(**shared, spatial_merge_size=merge)
    else:
        config = transformers.LlavaConfig(**shared, vision_feature_layer=-1, vision_feature_select_strategy="full")
    processor = transformers.PixtralProcessor(
        image_processor=_class("PixtralImageProcessor")(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14}),
        tokenizer=tokenizer,
        patch_size=14,
        spatial_merge_size=merge,
        chat_template=_MISTRAL,
    )
    return _Parts(config, f"{'Mistral3' if kind == 'mistral3' else 'Llava'}ForConditionalGeneration", processor)


def _qwen2_audio(kind: str) -> _Parts:
    special = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    template = _chatml(audio="{{ 'Audio: <|audio_bos|><|AUDIO|><|audio_eos|>\\n' }}")
    tokenizer = _tokenizer(special, template)
    config = transformers.Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "d_model": 32,
            "max_source_positions": 50,
        },
        text_config=_text(tokenizer),
        audio_token_index=_id(tokenizer, "<|AUDIO|>"),
    )
    processor = transformers.Qwen2AudioProcessor(
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        tokenizer=tokenizer,
        chat_template=template,
    )
    return _Parts(config, "Qwen2AudioForConditionalGeneration", processor)


_BUILDERS: dict[str, Callable[[str], _Parts]] = {
    "llava": _llava,
    "llava_next": _llava,
    "pixtral": _mistral3,
    "mistral3": _mistral3,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "qwen2_audio": _qwen2_audio,
    "qwen2_vl": _qwen_vl,
    "qwen2_5_vl": _qwen_vl,
    "qwen3_vl": _qwen_vl,
    "glm4v": _glm4v,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "smolvlm": _idefics3,
}

KINDS = tuple(_BUILDERS)
"""Architectures that `make_tiny_multimodal` makes."""

VIDEO_KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "llava_onevision", "internvl", "smolvlm")
"""Those that take videos; their processors need torchvision."""

AUDIO_KINDS = ("qwen2_audio",)
"""Those that take sound instead of images."""


def available_kinds() -> tuple[str, ...]:
    """Return the architectures whose processors can be made with the libraries that are installed."""
    absent: set[str] = set()
    if not find_spec("torchvision"):
        absent |= {*VIDEO_KINDS, "pixtral", "mistral3"}
    if not find_spec("num2words"):
        absent.add("smolvlm")
    return tuple(kind for kind in KINDS if kind not in absent)


def make_tiny_multimodal(kind: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a randomly initialised model of an architecture, its tokenizer and its processor into `folder` and return it.

    The same arguments give the same weights; the state of torch's random generator is left as it was.
    """
    with quiet_transformers():
        parts = _BUILDERS[kind](kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _class(parts.model)(parts.config)
        model.save_pretrained(folder)
        parts.processor.save_pretrained(folder)
    return folder


def make_picture(folder: Path, name: str, *, color: tuple[int, int, int] = (200, 40, 40), size: tuple[int, int] = (48, 40)) -> Path:
    """Write a PNG with a coloured square on a grey gradient and return its path."""
    width, height = size
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.paste(color, (width // 4, height // 4, 3 * width // 4, 3 * height // 4))
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)
    return folder / name


def _class(name: str) -> Any:
    """Return a class of transformers, in its Pillow form where torchvision is absent."""
    if name.endswith("ImageProcessor") and not find_spec("torchvision"):
        name += "Pil"
    return getattr(importlib.import_module("transformers"), name)
