"""Chat templates of multimodal models: the processor expands placeholders, and the loss mask follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from swift_core.config.sections import MediaSection, TemplateSection
from swift_core.data.media import LoadedMedia, MediaLoader, Video
from swift_core.errors import DataError, TemplateError
from swift_core.models.adapters.base import MediaAdapter
from swift_core.protocols import EncodedSample, Message, Sample
from swift_core.templates.adapted import AdapterTemplate, build_adapter_template
from swift_core.templates.chat import ChatTemplate, build_template, leading_bos
from swift_core.templates.expansion import read_replacements, widen
from swift_core.templates.grounding import with_boxes
from swift_core.templates.marked import MarkedText
from swift_core.templates.mask import IGNORED, Span
from swift_core.templates.rendering import Renderer
from swift_core.templates.slots import KINDS, SLOT, SLOTS, TAGS, slotted

Tools = list[dict[str, Any]]

_PROBE = "swiftprobelayout"

# What processors raise on media that do not suit them.
_REFUSALS = (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError, ZeroDivisionError)


def is_multimodal(processor: Any) -> bool:
    """Say whether something is a processor of media rather than a tokenizer."""
    return isinstance(processor, MediaAdapter) or any(_part(processor, kind) is not None for kind in KINDS)


def _part(processor: Any, kind: str) -> Any:
    if kind == "audio":
        return getattr(processor, "audio_processor", None) or getattr(processor, "feature_extractor", None)
    return getattr(processor, f"{kind}_processor", None)


class PartsRenderer(Renderer):
    """Renders messages whose texts have slots for media.

    Chat templates take the content of a message as a text, as a list of typed parts, or as either, and not always the same for
    every role. Which form a role takes is found by rendering a small conversation; parts are used wherever they work.

    Args:
        tokenizer, jinja, variables: as in `Renderer`.
        placeholders: kind of medium -> text of its placeholder, for contents that have to be a text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        jinja: str | None = None,
        variables: Mapping[str, Any] | None = None,
        placeholders: Mapping[str, str],
    ) -> None:
        super().__init__(tokenizer, jinja=jinja, variables=variables)
        self._placeholders = dict(placeholders)
        self._parts: dict[str, bool] = {}
        self._parts["user"] = self._takes_parts("user")
        self._parts["assistant"] = self._takes_parts("assistant")
        self._parts["system"] = self._takes_parts("system")

    def _takes_parts(self, role: str) -> bool:
        probe: list[dict[str, Any]] = [{"type": "text", "text": _PROBE}]
        user: Any = {"role": "user", "content": self._laid_out("user", "question")} if role != "user" else None
        tried: Any = {"role": role, "content": probe}
        turns = [tried] if role == "user" else [user, tried] if role == "assistant" else [tried, user]
        try:
            text = super().text(turns, None, generation_prompt=False)
        except TemplateError:
            return False
        return _PROBE in text and "'type'" not in text and '"type"' not in text

    def text(self, messages: Sequence[Message], *args: Any, **kwargs: Any) -> str:
        """Return the text of a conversation, as `Renderer.text` does."""
        return super().text(self._with_layout(messages), *args, **kwargs)

    def marked(self, messages: Sequence[Message], *args: Any, **kwargs: Any) -> tuple[str, list[Span]]:
        """Return text and marks of a conversation, as `Renderer.marked` does."""
        return super().marked(self._with_layout(messages), *args, **kwargs)

    def _with_layout(self, messages: Sequence[Message]) -> list[Message]:
        return [
            {**message, "content": self._laid_out(message["role"], message["content"])}
            if isinstance(cast(Any, message.get("content")), str)
            else message
            for message in messages
        ]

    def _laid_out(self, role: str, content: str) -> Any:
        if not self._parts.get(role, self._parts["user"] and role == "tool" and SLOT.search(content) is not None):
            return fill_slots(content, self._placeholders)
        parts: list[dict[str, Any]] = []
        for number, piece in enumerate(SLOT.split(content)):
            if number % 2:
                parts.append({"type": piece})
            elif piece:
                parts.append({"type": "text", "text": piece})
        return parts or [{"type": "text", "text": ""}]


def fill_slots(text: str, placeholders: Mapping[str, str]) -> str:
    """Return a text with the placeholders of a processor in the slots of media."""
    return SLOT.sub(lambda match: placeholders.get(match[1], ""), text)


@dataclass(frozen=True, slots=True)
class MarkedMedia(MarkedText):
    """A rendered sample whose media are expanded already.

    Attributes:
        encoded: token ids, labels and the tensors of the processor.
    """

    encoded: EncodedSample = field(kw_only=True)


class ProcessorTemplate(ChatTemplate):
    """A chat template together with the processor of a multimodal model.

    The conversation is rendered with one placeholder for each medium and the answers are marked in that text. The processor then
    widens the placeholders; marks behind them move along. Token ids are the processor's own.

    Args:
        processor: of a multimodal model, with its tokenizer inside.
        loader: reads the media of samples.
        tokenizer: the processor's tokenizer.
        jinja: chat template to use instead of the processor's own.
        settings: further arguments of `ChatTemplate`.

    Attributes:
        processor: as given.
        token_inputs: names of processor outputs that have one entry for each token, such as `mm_token_type_ids`.
        placeholder_ids: tokens that stand for media; they are never trained and never cut apart.
    """

    takes_media: ClassVar[bool] = True

    def __init__(
        self, processor: Any, loader: MediaLoader, tokenizer: PreTrainedTokenizerBase, *, jinja: str | None = None, **settings: Any
    ) -> None:
        self.processor = processor
        self._placeholders = {kind: token for kind in KINDS if isinstance(token := getattr(processor, f"{kind}_token", None), str)}
        own: Any = getattr(processor, "chat_template", None)
        if isinstance(own, dict):
            own = cast("dict[str, str]", own).get("default")
        super().__init__(
            tokenizer,
            jinja=jinja if jinja is not None else own,
            make_renderer=partial(PartsRenderer, placeholders=self._placeholders),
            **settings,
        )
        # Where the processor knows bounds for pixels, it alone resizes: a picture that is resized twice has another grid.
        wanted: Any = getattr(getattr(_part(processor, "image"), "valid_kwargs", None), "__annotations__", {})
        self._bounds: dict[str, Any] = {}
        if {"min_pixels", "max_pixels"} <= set(wanted):
            self._bounds = _pixel_bounds(_part(processor, "image"), loader.section)
            loader = MediaLoader(loader.section.model_copy(update={"max_pixels": None, "min_pixels": None}), allow_local=loader.allow_local)
        self.loader = loader
        self.placeholder_ids = _placeholder_ids(processor, tokenizer, self._placeholders)
        self.token_inputs = tuple(self._probe_token_inputs())

    def _probe_token_inputs(self) -> list[str]:
        output: Any = self.processor(text=["a"])
        length = len(output["input_ids"][0])
        names = [name for name in output if name not in ("input_ids", "attention_mask") and len(output[name][0]) == length]
        return names

    # --- training ---

    def mark(self, sample: Sample) -> MarkedText:
        """Render a sample, find the characters that are trained, and expand its media.

        Raises:
            TemplateError: when messages or media do not suit the model; the message starts with the sample's origin.
            MissingDependencyError: when decoding a medium needs a library that is not installed.
        """
        try:
            sample = with_boxes(sample, self.processor, self.loader, self._bounds)
        except DataError as error:
            raise TemplateError(error.message, fix=error.fix) from error
        marked = super().mark(slotted(sample, SLOTS if self.use_chat_template else self._placeholders))
        try:
            if not sample.has_media:
                self._check_counts(marked.text, {})
                return marked
            encoded = self._expanded(marked, sample)
        except DataError as error:
            raise TemplateError(error.message, fix=error.fix) from error
        except TemplateError as error:
            raise TemplateError(f"{sample.origin}: {error.message}" if sample.origin else error.message, fix=error.fix) from error
        values = {item.name: getattr(marked, item.name) for item in fields(marked)}
        return MarkedMedia(**values, encoded=encoded)

    def _expanded(self, marked: MarkedText, sample: Sample) -> EncodedSample:
        media, output = self._processed(marked.text, sample)
        ids: list[int] = _row(output["input_ids"])
        replacements = self._replacements(output, marked.text, media)
        text, spans = widen(marked.text, marked.spans, replacements)
        _, weighted = widen(marked.text, [(start, stop) for start, stop, _ in marked.weights], replacements)
        weights = tuple((start, stop, part[2]) for (start, stop), part in zip(weighted, marked.weights, strict=True))
        encoded = super().tokenize([replace(marked, text=text, spans=spans, weights=weights)])[0]
        inputs = self._tensors(output, len(ids))
        missing = len(ids) - len(encoded.input_ids)
        if missing >= 0:  # the processor let the tokenizer add its bos token
            before = _place(encoded.input_ids, ids)
            encoded = _framed(encoded, ids, before)
        else:  # joined texts have a bos and an eos token around them that the processor did not put there
            before = _place(ids, encoded.input_ids)
            for name in self.token_inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (before, -missing - before))
        encoded.labels = [
            IGNORED if id_ in self.placeholder_ids else label for id_, label in zip(encoded.input_ids, encoded.labels, strict=True)
        ]
        encoded.model_inputs = inputs
        return encoded

    def tokenize(self, marked: Sequence[MarkedText]) -> list[EncodedSample]:
        """Return token ids and labels of marked texts; texts without media go through a fast tokenizer in one call."""
        plain = iter(super().tokenize([item for item in marked if not isinstance(item, MarkedMedia)]))
        encoded = [item.encoded if isinstance(item, MarkedMedia) else self._as_processed(next(plain), item.text) for item in marked]
        return encoded

    def _as_processed(self, sample: EncodedSample, text: str) -> EncodedSample:
        """Return a sample of text alone as the processor would make it."""
        bos = self._missing_bos(text)
        if bos:
            sample = _framed(sample, [*bos, *sample.input_ids], len(bos))
        if self.token_inputs:
            sample.model_inputs = {name: torch.zeros(len(sample.input_ids), dtype=torch.long) for name in self.token_inputs}
        return sample

    def _missing_bos(self, text: str) -> list[int]:
        # Processors let the tokenizer add its bos token unless the chat template has written one.
        bos: Any = self.tokenizer.bos_token
        return leading_bos(self.tokenizer) if self.use_chat_template and not (bos and text.startswith(bos)) else []

    def cut(self, sample: EncodedSample, start: int, stop: int) -> EncodedSample | None:
        """Return tokens [start, stop) of a sample, or None when that would part media from their placeholders."""
        outside = [*sample.input_ids[:start], *sample.input_ids[stop:]]
        if any(token in self.placeholder_ids for token in outside):
            return None
        inputs = sample.model_inputs and {
            name: value[start:stop] if name in self.token_inputs else value for name, value in sample.model_inputs.items()
        }
        scale = sample.loss_scale[start:stop] if sample.loss_scale is not None else None
        return replace(
            sample, input_ids=sample.input_ids[start:stop], labels=sample.labels[start:stop], loss_scale=scale, model_inputs=inputs
        )

    # --- inference ---

    def encode_prompt(
        self, messages: Sequence[Message], tools: Tools | None = None, variables: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Return the token ids after which the model writes the next assistant turn, for a conversation without media.

        Args:
            messages: the conversation so far.
            tools: function schemas offered to the model.
            variables: switches of thinking and of the chat template for this prompt alone.

        Raises:
            TemplateError: when the chat template refuses the messages.
        """
        text = self.render(messages, tools, add_generation_prompt=True, variables=variables)
        self._check_counts(text, {})
        bos = self._missing_bos(text) if self.use_chat_template else self._bos
        return [*bos, *self._ids(text)]

    def encode_media_prompt(self, sample: Sample) -> EncodedSample:
        """Return token ids and tensors after which the model writes the next assistant turn; no token is trained.

        Raises:
            TemplateError: when messages or media do not suit the model.
            DataError: when a medium cannot be read.
        """
        if not sample.has_media:
            ids = self.encode_prompt(sample.messages, sample.tools, sample.chat_template_kwargs)
            inputs = {name: torch.zeros(len(ids), dtype=torch.long) for name in self.token_inputs}
            return EncodedSample(ids, [IGNORED] * len(ids), sample.origin, model_inputs=inputs or None)
        sample = with_boxes(sample, self.processor, self.loader, self._bounds)
        laid_out = slotted(sample, SLOTS if self.use_chat_template else self._placeholders).messages
        text = self.render(laid_out, sample.tools, add_generation_prompt=True, variables=sample.chat_template_kwargs)
        _, output = self._processed(text, sample)
        ids = _row(output["input_ids"])
        return EncodedSample(ids, [IGNORED] * len(ids), sample.origin, model_inputs=self._tensors(output, len(ids)))

    def dummy(self) -> EncodedSample:
        """Return a short sample with a blank picture or a short silence and no trained token, for ranks whose batch has no media."""
        kinds = [kind for kind in ("image", "audio") if _part(self.processor, kind) is not None]
        sample = Sample([Message(role="user", content="".join(TAGS[kind] for kind in kinds))], origin="dummy media")
        if "image" in kinds:
            sample.images = [Image.new("RGB", (56, 56))]
        if "audio" in kinds:
            sample.audios = [{"array": np.zeros(1600, np.float32), "sampling_rate": 16000}]
        if self.use_chat_template:
            return self.encode_media_prompt(sample)
        encoded = self.encode(sample)
        return replace(encoded, labels=[IGNORED] * len(encoded))

    # --- the processor ---

    def _processed(self, text: str, sample: Sample) -> tuple[LoadedMedia, dict[str, Any]]:
        for kind in KINDS:
            if getattr(sample, f"{kind}s") and _part(self.processor, kind) is None:
                raise TemplateError(f"{type(self.processor).__name__} takes no {kind}s", fix=f"leave {kind}s out, or choose another model")
        rate = int(getattr(_part(self.processor, "audio"), "sampling_rate", None) or 16000)
        media = self.loader.load(sample.images, sample.videos, sample.audios, sampling_rate=rate, origin=sample.origin)
        self._check_counts(text, {"image": len(media.images), "video": len(media.videos), "audio": len(media.audios)})
        try:
            return media, dict(self.processor(**self._arguments(text, media, rate)))
        except _REFUSALS as error:
            raise TemplateError(
                f"{type(self.processor).__name__} refuses the media: {_one_line(error)}", fix="look at the media of the row"
            ) from error

    def _arguments(self, text: str, media: LoadedMedia, rate: int) -> dict[str, Any]:
        words: dict[str, Any] = {"add_special_tokens": self.use_chat_template and bool(self._missing_bos(text))}
        if self._expands_text:
            words["return_text_replacement_offsets"] = True
        arguments: dict[str, Any] = {"text": [text], "text_kwargs": words}
        if media.images:
            arguments |= {"images": [media.images], "images_kwargs": {**self._bounds, "return_tensors": "pt"}}
        if media.videos:
            told = [self._metadata(video) for video in media.videos]
            sampling = {"do_sample_frames": False, "video_metadata": told, "return_tensors": "pt"}
            arguments |= {"videos": [[video.frames for video in media.videos]], "videos_kwargs": sampling}
        if media.audios:
            arguments |= {"audio": media.audios, "audio_kwargs": {"sampling_rate": rate, "return_tensors": "pt"}}
        return arguments

    @property
    def _expands_text(self) -> bool:
        return hasattr(self.processor, "get_text_with_replacements")

    def _metadata(self, video: Video) -> dict[str, Any]:
        height, width = video.frames.shape[1:3]
        rate = video.fps if video.fps is not None else self.loader.section.fps
        seconds = video.total / rate if rate else None
        return {
            "total_num_frames": video.total,
            "fps": rate,
            "duration": seconds,
            "frames_indices": video.indices,
            "height": height,
            "width": width,
        }

    def _replacements(self, output: Mapping[str, Any], text: str, media: LoadedMedia) -> list[tuple[Span, str]]:
        told: Any = output.get("text_replacement_offsets")
        if told:
            return [(tuple(item["span"]), item["replacement"]) for item in told[0]]
        return read_replacements(text, _row(output["input_ids"]), self.tokenizer, self._placeholders.values())

    def _check_counts(self, text: str, counts: Mapping[str, int]) -> None:
        for kind, token in self._placeholders.items():
            found, expected = text.count(token), counts.get(kind, 0)
            if found < expected:
                raise TemplateError(
                    f"the chat template has a place for {found} of {expected} {kind}s", fix="choose another --template, or leave them out"
                )
            if found > expected:
                raise TemplateError(
                    f"the text has {found} times {token!r}, which stands for {kind}s, and there are {expected} {kind}s",
                    fix=f"remove {token!r} from the texts, or give one {kind} for each",
                )

    def _tensors(self, output: Mapping[str, Any], length: int) -> dict[str, Any]:
        """Return what the model takes besides token ids: one entry a token without batch axis, all else as the processor gave it."""
        inputs: dict[str, Any] = {}
        for name, value in output.items():
            if name in ("input_ids", "attention_mask", "offset_mapping", "text_replacement_offsets", "video_metadata"):
                continue
            tensor = _tensor(value)
            inputs[name] = tensor[0] if name in self.token_inputs else tensor
        return inputs


MediaTemplate = ProcessorTemplate | AdapterTemplate
"""Templates that make a sample of prompt and media, with `encode_media_prompt`."""


def build_processor_template(processor: Any, section: TemplateSection, media: MediaSection | None = None) -> ChatTemplate:
    """Return the template that the settings describe, for a processor, for an adapter in its place, or for a tokenizer.

    Raises:
        TemplateError: when there is no chat template to use, or settings exclude one another.
        RegistryError: when the named template is unknown.
    """
    if isinstance(processor, MediaAdapter):
        return build_adapter_template(processor, section, media)
    if not is_multimodal(processor):
        return build_template(processor, section)
    template = build_template(processor.tokenizer, section, make=partial(ProcessorTemplate, processor, MediaLoader(media)))
    if section.template:
        processor.chat_template = processor.tokenizer.chat_template
    return template


def _pixel_bounds(image_processor: Any, section: MediaSection) -> dict[str, Any]:
    """Return the processor's size with the bounds of the settings in it, or nothing when they set none."""
    if section.min_pixels is None and section.max_pixels is None:
        return {}
    size: Any = dict(getattr(image_processor, "size", None) or {})
    low = section.min_pixels or size.get("shortest_edge") or 1
    high = section.max_pixels or size.get("longest_edge") or low
    return {"size": {"shortest_edge": min(low, high), "longest_edge": max(low, high)}}


def _placeholder_ids(processor: Any, tokenizer: PreTrainedTokenizerBase, placeholders: Mapping[str, str]) -> frozenset[int]:
    found: list[Any] = [tokenizer.convert_tokens_to_ids(token) for token in placeholders.values()]
    for kind in KINDS:
        found += [*(getattr(processor, f"{kind}_token_ids", None) or []), getattr(processor, f"{kind}_token_id", None)]
        found.append(getattr(tokenizer, f"{kind}_token_id", None))
    return frozenset(id_ for id_ in found if isinstance(id_, int) and id_ != tokenizer.unk_token_id)


def _place(part: Sequence[int], whole: Sequence[int]) -> int:
    """Return where one row of tokens begins in a longer one, which has a few special tokens around it."""
    for start in range(len(whole) - len(part) + 1):
        if list(whole[start : start + len(part)]) == list(part):
            return start
    raise TemplateError("the processor's tokens are not those of its own text", fix="report the model; its processor is unusual")


def _framed(sample: EncodedSample, ids: list[int], before: int) -> EncodedSample:
    """Return a sample inside a longer row of tokens, of which the further ones are not trained."""
    after = len(ids) - before - len(sample.input_ids)
    scale = sample.loss_scale
    return replace(
        sample,
        input_ids=ids,
        labels=[*[IGNORED] * before, *sample.labels, *[IGNORED] * after],
        loss_scale=None if scale is None else [*[0.0] * before, *scale, *[0.0] * after],
    )


def _row(value: Any) -> list[int]:
    first = value[0]
    return first.tolist() if hasattr(first, "tolist") else list(first)


def _tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return torch.stack(cast("list[torch.Tensor]", value))
    return torch.as_tensor(value)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."
