"""Where the parts of a model are: language model, aligner, towers, head, embedding, layers; and freezing them.

A part is a list of dotted module paths. One path may lie inside another, as a merger inside a vision tower does; the longest
path that fits a parameter says what it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from swift_core.cards.models import ModulePaths, families
from swift_core.config.sections import TunerSection
from swift_core.errors import ModelError

Kind = Literal["language_model", "aligner", "vision_tower", "audio_tower", "generator"]

_VISION = re.compile(r"visual|vision|image_encoder|image_tower|img_processor|video_tower|vpm|vit|vqmodel|sam_model|qwen2_model|vte")
_AUDIO = re.compile(r"audio|speech|apm|sound|conformer|acoustic|semantic_tokenizer|codec_model")
_ALIGNER = re.compile(
    r"(multi_modal|mm|vision|visual|image|audio|speech|modality)_?(language_)?(projector|projection|adapter|adaptor|connector|resampler|merger).*"
    r"|(language|image_to_text)_projection|projector|mm_projector\w*|connector|aligner|resampler(_model)?|perceiver\w*|adapter|\w*abstractor|qformer|merger(_list)?"
    r"|embed_(vision|audio)|vision_embed|vision_proj|mlp1|mlp_AR|(vision|image)2text\w*|hr_compressor|pre_mm_projector\w*"
)
# Parts of a tower that already speak to the language model.
_INNER_ALIGNER = re.compile(r"merger|merger_list|deepstack_merger_list|perceive|proj1|proj2|img_projection|image_projector")
_GENERATOR = re.compile(r"talker|token2wav|code2wav|speech_generator|gen_\w+|generation_\w+")
_LANGUAGE = re.compile(r"language_model|text_model|llm|language|decoder|transformer|model|text_decoder")
_HEAD = re.compile(r"lm_head|output|output_layer|embed_out|score|classifier|codec_head")
_CONTAINERS = frozenset({"model", "thinker", "encoder", "vlm"})
_LAYERS = re.compile(r"(.*\.)?(layers|layer|h|blocks|block)")
_WRAPPERS = re.compile(r"(?:_orig_mod|module|base_model\.model)\.|\.(?:base_layer|original_module|modules_to_save\.\w+)(?=\.)")


@dataclass(frozen=True, slots=True)
class ModuleMap:
    """Where the parts of a model are, as dotted paths from the model.

    Attributes:
        language_model: what writes text, its head included; everything else that is no other part belongs to it as well.
        aligner: what carries features of a tower over to the language model.
        vision_tower: what sees.
        audio_tower: what hears.
        generator: what makes sound or pictures of the answer.
        lm_head: output head, or None.
        embedding: input embedding, or None.
        layers: list of the language model's layers, or None.
        source: where this is from: a row of the table, or `inspection`.
    """

    language_model: tuple[str, ...] = ()
    aligner: tuple[str, ...] = ()
    vision_tower: tuple[str, ...] = ()
    audio_tower: tuple[str, ...] = ()
    generator: tuple[str, ...] = ()
    lm_head: str | None = None
    embedding: str | None = None
    layers: str | None = None
    source: str = field(default="inspection", compare=False)

    @property
    def multimodal(self) -> bool:
        """Say whether there is anything besides a language model."""
        return bool(self.aligner or self.vision_tower or self.audio_tower or self.generator)

    def parts(self) -> Iterator[tuple[Kind, str]]:
        """Yield each path with the kind of its part."""
        for kind in ("aligner", "vision_tower", "audio_tower", "generator", "language_model"):
            for path in getattr(self, kind):
                yield kind, path


def module_map(model: nn.Module) -> ModuleMap:
    """Return where the parts of a model are.

    The table `model_archs.tsv` is asked first, by the class of the model; a row counts when every path in it exists. Else
    the names and config classes of the modules tell. Adapters and wrappers may be on; paths are those of the bare model.
    """
    bare = unwrap(model)
    embedding, head = _path_of(bare, "get_input_embeddings"), _path_of(bare, "get_output_embeddings")
    paths = _from_table(bare)
    found = _by_table(bare, paths[1]) if paths else _by_inspection(bare)
    layers = _layers(bare, found)
    head = head or _first_path(bare, (*(paths[1].lm_head if paths else ()), *_ending(found.language_model, "lm_head")))
    embedding = embedding or _first_path(bare, (*(paths[1].embedding if paths else ()), *_below(found.language_model, "embed_tokens")))
    written = found.language_model or _rest(bare)
    if head is not None and not any(head == path or head.startswith(path + ".") for path in written):
        written = (*written, head)
    return ModuleMap(
        language_model=written,
        aligner=found.aligner,
        vision_tower=found.vision_tower,
        audio_tower=found.audio_tower,
        generator=found.generator,
        lm_head=head,
        embedding=embedding,
        layers=layers,
        source=f"table: {paths[0]}" if paths else "inspection",
    )


def parameter_kind(name: str, map: ModuleMap) -> Kind:
    """Return the part that a parameter or module belongs to, by the longest path that its name starts with.

    Args:
        name: full name, with or without what PEFT and wrappers put into it.
        map: of the same model.
    """
    plain = plain_name(name)
    best: tuple[int, Kind] = (-1, "language_model")
    for kind, path in map.parts():
        if (plain == path or plain.startswith(path + ".")) and len(path) > best[0]:
            best = (len(path), kind)
    return best[1]


def plain_name(name: str) -> str:
    """Return a name without what PEFT, DDP and torch.compile put into it."""
    return _WRAPPERS.sub("", name)


def frozen_kinds(*, freeze_llm: bool, freeze_vit: bool, freeze_aligner: bool) -> frozenset[Kind]:
    """Return the parts that the three settings freeze; `freeze_vit` holds for what hears as well, and generators never train."""
    kinds: dict[Kind, bool] = {
        "language_model": freeze_llm,
        "vision_tower": freeze_vit,
        "audio_tower": freeze_vit,
        "aligner": freeze_aligner,
        "generator": True,
    }
    return frozenset(kind for kind, frozen in kinds.items() if frozen)


def frozen_names(model: nn.Module, map: ModuleMap, *, freeze_llm: bool, freeze_vit: bool, freeze_aligner: bool) -> dict[str, Kind]:
    """Return the parameters that the three settings freeze, with their parts; none of a model of text alone.

    Raises:
        ModelError: when nothing would be left to train.
    """
    if not map.multimodal:
        if freeze_llm:
            raise ModelError("--freeze_llm leaves nothing to train: the model is text only", fix="remove --freeze_llm")
        return {}
    kinds = frozen_kinds(freeze_llm=freeze_llm, freeze_vit=freeze_vit, freeze_aligner=freeze_aligner)
    found: dict[str, Kind] = {name: parameter_kind(name, map) for name, _ in model.named_parameters()}
    frozen: dict[str, Kind] = {name: kind for name, kind in found.items() if kind in kinds}
    if len(frozen) == len(found):
        raise ModelError(
            "language model, towers and aligner are all frozen, so there is nothing to train",
            fix="set one of --freeze_llm, --freeze_vit, --freeze_aligner to false",
        )
    return frozen


def freeze(model: nn.Module, map: ModuleMap, *, freeze_llm: bool, freeze_vit: bool, freeze_aligner: bool) -> dict[Kind, int]:
    """Set `requires_grad` to false in the parts that are frozen, and return how many weights that are, by part.

    A model of text alone stays as it is: the settings are about multimodal models. It comes before a tuner's `prepare`, which
    keeps adapters out of what is frozen here.

    Raises:
        ModelError: when nothing would be left to train.
    """
    names = frozen_names(model, map, freeze_llm=freeze_llm, freeze_vit=freeze_vit, freeze_aligner=freeze_aligner)
    counts: dict[Kind, int] = {}
    for name, parameter in model.named_parameters():
        if name in names:
            parameter.requires_grad_(False)
            counts[names[name]] = counts.get(names[name], 0) + parameter.numel()
    return counts


def freeze_parts(model: nn.Module, section: TunerSection) -> dict[Kind, int]:
    """Freeze what `--freeze_llm`, `--freeze_vit` and `--freeze_aligner` say, before a tuner's `prepare`.

    Raises:
        ModelError: when nothing would be left to train.
    """
    flags = {"freeze_llm": section.freeze_llm, "freeze_vit": section.freeze_vit, "freeze_aligner": section.freeze_aligner}
    return freeze(model, module_map(model), **flags)


def frozen_parts(model: nn.Module, map: ModuleMap) -> frozenset[Kind]:
    """Return the parts of a multimodal model in which no weight is trainable, while some are in another part.

    This is how a tuner sees what `freeze` did, so that it puts no adapters there.
    """
    trainable: set[Kind] = set()
    present: set[Kind] = set()
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            kind = parameter_kind(name, map)
            present.add(kind)
            if parameter.requires_grad:
                trainable.add(kind)
    return frozenset(present - trainable) if trainable and map.multimodal else frozenset()


def unwrap(model: nn.Module) -> nn.Module:
    """Return the transformers model inside PEFT, DDP and torch.compile wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None) or (getattr(model, "module", None) if not hasattr(model, "config") else None)
        if isinstance(inner, nn.Module):
            model = inner
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            return model.get_base_model()  # pyright: ignore[reportCallIssue]
        else:
            return model


def _from_table(model: nn.Module) -> tuple[str, ModulePaths] | None:
    """Return the first row whose every path exists, of the families with this class."""
    config = getattr(model, "config", None)
    names = {type(model).__name__, *(getattr(config, "architectures", None) or ())}
    for family in families().values():
        if not names & set(family.architectures):
            continue
        for paths in family.module_paths:
            named = [*paths.language_model, *paths.aligner, *paths.vision_tower, *paths.generator]
            if named and all(_has(model, path) for path in named):
                return family.model_arch or family.model_type, paths
    return None


def _by_table(model: nn.Module, paths: ModulePaths) -> ModuleMap:
    hears = tuple(path for path in paths.vision_tower if _is_audio(model, path))
    return ModuleMap(
        language_model=paths.language_model,
        aligner=paths.aligner,
        vision_tower=tuple(path for path in paths.vision_tower if path not in hears),
        audio_tower=hears,
        generator=paths.generator,
    )


def _is_audio(model: nn.Module, path: str) -> bool:
    if _AUDIO.search(path.rpartition(".")[2]):
        return True
    config = getattr(model.get_submodule(path), "config", None)
    return config is not None and bool(_AUDIO.search(str(getattr(config, "model_type", ""))))


def _by_inspection(model: nn.Module) -> ModuleMap:
    """Look through the children of the model and of its containers, by name and by the class of their config."""
    parts: dict[str, list[str]] = {kind: [] for kind in ("language_model", "aligner", "vision_tower", "audio_tower", "generator")}
    if not _holds_parts(model):
        return ModuleMap()
    _sort_children(model, "", parts, depth=0)
    if not (parts["vision_tower"] or parts["audio_tower"]):
        return ModuleMap()
    for tower in (*parts["vision_tower"], *parts["audio_tower"]):
        for name, child in model.get_submodule(tower).named_children():
            inner = _INNER_ALIGNER.fullmatch(name) or (name == "proj" and tower in parts["audio_tower"])
            if inner and _has_weights(child):
                parts["aligner"].append(f"{tower}.{name}")
    return ModuleMap(**{kind: tuple(found) for kind, found in parts.items()})  # pyright: ignore[reportArgumentType]


def _sort_children(module: nn.Module, prefix: str, parts: dict[str, list[str]], *, depth: int) -> None:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if not _has_weights(child):
            continue
        kind = _kind_of_child(name, child, module)
        if kind is not None:
            parts[kind].append(path)
        elif depth < 3 and _holds_parts(child):
            _sort_children(child, f"{path}.", parts, depth=depth + 1)
        elif prefix == "" or _LANGUAGE.fullmatch(name) or _HEAD.fullmatch(name):
            parts["language_model"].append(path)
        elif not isinstance(child, nn.ModuleList | nn.Embedding) and "norm" not in name:
            parts["aligner"].append(path)


def _kind_of_child(name: str, child: nn.Module, parent: nn.Module) -> str | None:
    if _GENERATOR.fullmatch(name):
        return "generator"
    if _ALIGNER.fullmatch(name):
        return "aligner"
    sense = _sense(name, child, parent)
    if sense is not None or _holds_parts(child):
        return sense
    return "language_model" if _LANGUAGE.fullmatch(name) or _HEAD.fullmatch(name) else None


def _sense(name: str, child: nn.Module, parent: nn.Module) -> str | None:
    """Return the tower that a module is, by its name or by the type of a config that is its own; else None."""
    if _LANGUAGE.fullmatch(name) or _ALIGNER.fullmatch(name) or _GENERATOR.fullmatch(name):
        return None
    config, around = getattr(child, "config", None), getattr(parent, "config", None)
    own = str(getattr(config, "model_type", "")) if config is not None and config is not around else ""
    if _AUDIO.search(name) or (own and _AUDIO.search(own)):
        return "audio_tower"
    if _VISION.search(name) or (own and "text" not in own and re.search(r"vision|clip|siglip|vit", own)):
        return "vision_tower"
    return None


def _holds_parts(module: nn.Module) -> bool:
    """Say whether a module is a container: a tower and a language model lie side by side in it, at some depth."""
    children = {name: child for name, child in module.named_children() if _has_weights(child)}
    towers = {name for name, child in children.items() if _sense(name, child, module)}
    if towers and any(_LANGUAGE.fullmatch(name) or _LAYERS.fullmatch(name) for name in children.keys() - towers):
        return True
    return any(name in _CONTAINERS and _holds_parts(child) for name, child in children.items() if name not in towers)


def _has_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _has(model: nn.Module, path: str) -> bool:
    try:
        return isinstance(model.get_submodule(path), nn.Module)
    except AttributeError:
        return False


def _rest(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, child in model.named_children() if _has_weights(child))


def _path_of(model: nn.Module, getter: str) -> str | None:
    """Return the path of the embedding or head that a transformers model names."""
    get: Any = getattr(model, getter, None)
    try:
        wanted = get() if get is not None else None
    except (NotImplementedError, AttributeError):
        return None
    return next((name for name, module in model.named_modules() if module is wanted), None) if wanted is not None else None


def _ending(paths: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(path for path in paths if path.rpartition(".")[2] == name)


def _below(paths: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(f"{path}.{name}" for path in paths)


def _first_path(model: nn.Module, paths: tuple[str, ...]) -> str | None:
    return next((path for path in paths if _has(model, path)), None)


def _layers(model: nn.Module, found: ModuleMap) -> str | None:
    """Return the longest list of layers in the language model; by weight where two are as long."""
    best: tuple[int, int, str] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not _LAYERS.fullmatch(name) or parameter_kind(name, found) != "language_model":
            continue
        size = (len(module), sum(parameter.numel() for parameter in module.parameters()), name)
        if best is None or size[:2] > best[:2]:
            best = size
    return best[2] if best else None
