"""Chat templates of multimodal models whose code lies in their folder: an adapter says what stands for each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar

from PIL import Image
from transformers import PreTrainedTokenizerBase

from swift_core.config.sections import MediaSection, TemplateSection
from swift_core.data.media import MediaLoader
from swift_core.errors import DataError, TemplateError
from swift_core.models.adapters.base import MediaAdapter, Replacement
from swift_core.models.detection import detect_folder
from swift_core.models.own_media import SampleMedia
from swift_core.protocols import EncodedSample, Message, Sample
from swift_core.templates.chat import ChatTemplate, build_template
from swift_core.templates.expansion import widen
from swift_core.templates.grounding import with_boxes
from swift_core.templates.marked import MarkedText
from swift_core.templates.mask import IGNORED, Span, subtract
from swift_core.templates.slots import KINDS, SLOT, SLOTS, slotted

# What a processor from a folder raises on images that do not suit it.
_REFUSALS = (ValueError, TypeError, IndexError, KeyError, AttributeError, RuntimeError, ZeroDivisionError, AssertionError)


@dataclass(frozen=True, slots=True)
class _MarkedImages(MarkedText):
    encoded: EncodedSample = field(kw_only=True)


class AdapterTemplate(ChatTemplate):
    """A chat template together with the adapter of a multimodal model.

    The conversation is rendered with one slot for each image, and the answers are marked in that text. The adapter then says what
    stands for an image; marks behind it move along. Tokens of images are never trained.

    Args:
        adapter: of the model.
        loader: reads the images of samples.
        tokenizer: the adapter's tokenizer.
        origin: sections that the template is built from, to build it again in another process.
        settings: further arguments of `ChatTemplate`.
    """

    takes_media: ClassVar[bool] = True

    def __init__(
        self,
        adapter: MediaAdapter,
        loader: MediaLoader,
        origin: tuple[TemplateSection, MediaSection | None],
        tokenizer: PreTrainedTokenizerBase,
        **settings: Any,
    ) -> None:
        super().__init__(tokenizer, **settings)
        self.adapter = adapter
        self.loader = loader
        self._origin = origin

    def __reduce__(self) -> tuple[Any, ...]:
        return build_adapter_template, (self.adapter, *self._origin)

    def mark(self, sample: Sample) -> MarkedText:
        """Render a sample, find the characters that are trained, and put its images in.

        Raises:
            TemplateError: when messages or images do not suit the model; the message starts with the sample's origin.
        """
        try:
            self._check_kinds(sample)
            if not sample.has_media:
                return super().mark(sample)
            sample = with_boxes(sample, self.adapter, self.loader, {})
            marked = super().mark(slotted(sample, SLOTS))
            encoded = self._expanded(marked, sample)
        except DataError as error:
            raise TemplateError(error.message, fix=error.fix) from error
        except TemplateError as error:
            known = not sample.origin or error.message.startswith(sample.origin)
            raise TemplateError(error.message if known else f"{sample.origin}: {error.message}", fix=error.fix) from error
        return _MarkedImages(**{item.name: getattr(marked, item.name) for item in fields(marked)}, encoded=encoded)

    def tokenize(self, marked: Sequence[MarkedText]) -> list[EncodedSample]:
        """Return token ids and labels of marked texts; texts without images go through a fast tokenizer in one call."""
        plain = iter(super().tokenize([item for item in marked if not isinstance(item, _MarkedImages)]))
        return [item.encoded if isinstance(item, _MarkedImages) else next(plain) for item in marked]

    def cut(self, sample: EncodedSample, start: int, stop: int) -> EncodedSample | None:
        """Return tokens [start, stop) of a sample, or None when that would part images from their places."""
        media: SampleMedia = (sample.model_inputs or {})["media"]
        if any(first < start or last > stop for first, last in media.places):
            return None
        scale = sample.loss_scale[start:stop] if sample.loss_scale is not None else None
        inputs = {"media": media.shifted(-start)}
        return replace(
            sample, input_ids=sample.input_ids[start:stop], labels=sample.labels[start:stop], loss_scale=scale, model_inputs=inputs
        )

    def encode_media_prompt(self, sample: Sample) -> EncodedSample:
        """Return token ids and tensors after which the model writes the next assistant turn; no token is trained.

        Raises:
            TemplateError: when messages or images do not suit the model.
            DataError: when an image cannot be read.
        """
        self._check_kinds(sample)
        variables = sample.chat_template_kwargs
        if not sample.has_media:
            ids = self.encode_prompt(sample.messages, sample.tools, variables)
            return EncodedSample(ids, [IGNORED] * len(ids), sample.origin)
        sample = with_boxes(sample, self.adapter, self.loader, {})
        text = self.render(slotted(sample, SLOTS).messages, sample.tools, add_generation_prompt=True, variables=variables)
        return self._expanded(MarkedText(text, (), (), sample.origin), sample)

    def dummy(self) -> EncodedSample:
        """Return a short sample with a blank image and no trained token, for ranks whose batch has no images."""
        sample = Sample([Message(role="user", content="<image>")], images=[Image.new("RGB", (56, 56))], origin="dummy media")
        if self.use_chat_template:
            return self.encode_media_prompt(sample)
        encoded = self.encode(sample)
        return replace(encoded, labels=[IGNORED] * len(encoded))

    # --- images in the place of slots ---

    def _check_kinds(self, sample: Sample) -> None:
        name = self.adapter.parts.model_type
        for kind in KINDS:
            if kind != "image" and getattr(sample, f"{kind}s"):
                raise TemplateError(f"{name} takes no {kind}s here", fix=f"leave {kind}s out, or choose another model")
        most = self.adapter.most_images
        if most is not None and len(sample.images) > most:
            raise TemplateError(f"{name} takes {most} image in a conversation, not {len(sample.images)}", fix="leave images out")

    def _expanded(self, marked: MarkedText, sample: Sample) -> EncodedSample:
        media = self.loader.load(sample.images, [], [], sampling_rate=16000, origin=sample.origin)
        slots = [match.span() for match in SLOT.finditer(marked.text)]
        if len(slots) != len(media.images):
            raise TemplateError(
                f"the chat template has a place for {len(slots)} of {len(media.images)} images",
                fix="choose another --template, or leave them out",
            )
        try:
            pictures = self.adapter.encode(media.images)
        except _REFUSALS as error:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            raise TemplateError(f"the model's own code refuses the images: {text}", fix="look at the images of the row") from error
        texts = [item for item in pictures.replacements if isinstance(item, str)]
        if len(texts) == len(pictures.replacements):
            encoded, places = self._with_texts(marked, list(zip(slots, texts, strict=True)))
        else:
            encoded, places = self._with_ids(marked, slots, pictures.replacements)
        encoded.model_inputs = {"media": SampleMedia(pictures.tensors, tuple(places))}
        return encoded

    def _with_texts(self, marked: MarkedText, replacements: Sequence[tuple[Span, str]]) -> tuple[EncodedSample, list[tuple[int, int]]]:
        text, spans = widen(marked.text, marked.spans, replacements)
        _, weighted = widen(marked.text, [(start, stop) for start, stop, _ in marked.weights], replacements)
        _, ends = widen(marked.text, [span for span, _ in replacements], replacements)
        holes = [(stop - len(new), stop) for (_, stop), (_, new) in zip(ends, replacements, strict=True)]
        weights = tuple((start, stop, part[2]) for (start, stop), part in zip(weighted, marked.weights, strict=True))
        wide = replace(marked, text=text, spans=tuple(subtract(spans, holes)), weights=weights)
        # The same text once for its labels and once for each image, to see which tokens are the image's.
        encoded, *seen = super().tokenize([wide, *(replace(wide, spans=(hole,), weights=()) for hole in holes)])
        places: list[tuple[int, int]] = []
        for sample in seen:
            inside = [at for at, label in enumerate(sample.labels) if label != IGNORED]
            places.append((inside[0], inside[-1] + 1))
        return encoded, places

    def _with_ids(
        self, marked: MarkedText, slots: Sequence[Span], replacements: Sequence[Replacement]
    ) -> tuple[EncodedSample, list[tuple[int, int]]]:
        """Put token ids between the texts around them, each of which is tokenised by itself, as these models do."""
        edges = [0, *(edge for slot in slots for edge in slot), len(marked.text)]
        parts = [_part(marked, edges[at], edges[at + 1]) for at in range(0, len(edges), 2)]
        ids: list[int] = []
        labels: list[int] = []
        scale: list[float] = []
        places: list[tuple[int, int]] = []
        for number, encoded in enumerate(super().tokenize(parts)):
            # Joined texts get a bos and an eos token around each part; those inside go.
            first = 0 if self.use_chat_template or number == 0 else len(self._bos)
            last = len(encoded)
            if not self.use_chat_template and number < len(replacements) and self.tokenizer.eos_token_id is not None:
                last -= 1
            ids += encoded.input_ids[first:last]
            labels += encoded.labels[first:last]
            weights = encoded.loss_scale or [float(label != IGNORED) for label in encoded.labels]
            scale += weights[first:last]
            if number < len(replacements):
                image = [int(id_) for id_ in replacements[number]]
                places.append((len(ids), len(ids) + len(image)))
                ids += image
                labels += [IGNORED] * len(image)
                scale += [0.0] * len(image)
        return EncodedSample(ids, labels, marked.origin, loss_scale=scale if marked.weights else None), places


def _part(marked: MarkedText, start: int, stop: int) -> MarkedText:
    """Return the characters [start, stop) of a marked text, with what is marked in them."""

    def inside(low: int, high: int) -> Span:
        return max(low, start) - start, min(high, stop) - start

    spans = [inside(low, high) for low, high in marked.spans if low < stop and high > start]
    weights = [(*inside(low, high), weight) for low, high, weight in marked.weights if low < stop and high > start]
    return replace(marked, text=marked.text[start:stop], spans=tuple(spans), weights=tuple(weights))


def build_adapter_template(adapter: MediaAdapter, section: TemplateSection, media: MediaSection | None = None) -> AdapterTemplate:
    """Return the template that the settings describe; a folder without a chat template gets the named one of its family.

    Raises:
        TemplateError: when there is no chat template to use, or settings exclude one another.
        RegistryError: when the named template is unknown.
    """
    chosen = section
    if section.use_chat_template and not section.template and not adapter.chat_template:
        found = detect_folder(adapter.parts.folder, model_type=adapter.parts.model_type).template
        chosen = section.model_copy(update={"template": found}) if found else section
    make = partial(AdapterTemplate, adapter, MediaLoader(media), (section, media))
    template: Any = build_template(adapter.tokenizer, chosen, make=make)
    return template
