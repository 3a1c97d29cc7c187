"""What a multimodal model whose code lies in its folder needs, besides that code, to be trained and run like any other.

Each family has one `MediaAdapter`. It knows two things: what stands in the token ids for an image, with the tensors of that image
(side of the template), and how the model's own `forward` and `generate` want them (side of the model). Between the two the tokens
are expanded, one id for each row of logits, so lengths, masks and losses need no special case.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from swift_core.errors import ModelError
from swift_core.models.own_media import BatchMedia, SampleMedia

if TYPE_CHECKING:  # texts do without the image libraries
    from PIL import Image

Replacement = str | list[int]


@dataclass(frozen=True, slots=True)
class Pictures:
    """The images of one sample, made ready.

    Attributes:
        replacements: what stands for each image: a text, which goes through the tokenizer with the rest, or token ids.
        tensors: of all images together, named as the adapter likes.
    """

    replacements: list[Replacement]
    tensors: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """What an adapter is made of.

    Attributes:
        folder: the model folder.
        config: its `config.json` as the model's own config class reads it.
        tokenizer: its tokenizer.
        processor: processor or image processor of the folder, or None where it has none.
        model_type: name of the family in the table of models.
        new_special_tokens: tokens added to the tokenizer.
    """

    folder: Path
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    processor: Any
    model_type: str
    new_special_tokens: tuple[str, ...] = ()


@dataclass(slots=True)
class Call:
    """A batch on its way into the model.

    Attributes:
        input_ids: expanded token ids `[batch, seq]`.
        attention_mask: `[batch, seq]`, 1 where there is a token; None when every place holds one.
        media: of each row; rows of text alone have none.
        rest: further arguments of the call, such as `use_cache` or `generation_config`.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    media: tuple[SampleMedia, ...]
    rest: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def mask(self) -> torch.Tensor:
        """Return the attention mask, ones where none was given."""
        return torch.ones_like(self.input_ids) if self.attention_mask is None else self.attention_mask

    @property
    def position_ids(self) -> torch.Tensor:
        """Return positions counted from each row's first token, `[batch, seq]`."""
        return (self.mask.long().cumsum(-1) - 1).clamp_min(0)

    @property
    def pictures(self) -> list[tuple[int, int, int]]:
        """Return row, first token and end of each image, in order."""
        return [(row, start, stop) for row, media in enumerate(self.media) for start, stop in media.places]

    def tensors(self, name: str) -> list[torch.Tensor]:
        """Return the tensor called `name` of each row that has one, in order."""
        return [media.tensors[name] for media in self.media if name in media.tensors]


class MediaAdapter(ABC):
    """One family. It stands in for the processor that transformers lacks.

    Args:
        parts: the opened folder.

    Attributes:
        tokenizer: of the model.
        always: the model's own `forward` cannot take a batch of text as it is either.
        most_images: how many images a conversation may have, or None.
    """

    always: ClassVar[bool] = False
    most_images: ClassVar[int | None] = None

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.config: Any = parts.config
        self.tokenizer: Any = parts.tokenizer

    def __reduce__(self) -> tuple[Any, ...]:
        from swift_core.models.adapters.find import load_adapter  # it imports the families, which import this module

        # Classes of a folder's own code cannot be found by name in a new process.
        return load_adapter, (self.parts.folder, self.parts.model_type, self.parts.new_special_tokens)

    @property
    def chat_template(self) -> str | None:
        """Return the chat template of the tokenizer."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, value: str | None) -> None:
        self.tokenizer.chat_template = value

    @abstractmethod
    def encode(self, images: Sequence[Image.Image]) -> Pictures:
        """Return what stands for the images of a sample, and their tensors."""

    @abstractmethod
    def forward(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Run the model on expanded tokens and return its output, one row of logits for each token.

        Args:
            model: the bare model.
            own: its own `forward`.
            call: the batch.
        """

    @abstractmethod
    def generate(self, model: Any, own: Callable[..., Any], call: Call) -> Any:
        """Generate from expanded prompts; the arguments are those of `forward`, with `own` the model's own `generate`."""

    def prepare(self, model: Any) -> Any:
        """Set up a loaded model and return it: one that generates with a method of its own may have no settings for that."""
        if not hasattr(model, "generation_config"):
            folder = self.parts.folder
            known = (folder / "generation_config.json").is_file()
            model.generation_config = GenerationConfig.from_pretrained(folder) if known else GenerationConfig()
        return model

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write tokenizer and processor files."""
        self.tokenizer.save_pretrained(folder, **kwargs)
        if self.parts.processor is not None:
            self.parts.processor.save_pretrained(folder, **kwargs)

    def token_id(self, token: str) -> int:
        """Return the id of a special token.

        Raises:
            ModelError: when the tokenizer has no such token.
        """
        found = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(found, int) or found < 0 or (found == self.tokenizer.unk_token_id and token != self.tokenizer.unk_token):
            raise ModelError(
                f"{str(self.parts.folder)!r}: the tokenizer has no token {token!r}, which stands for images of {self.parts.model_type}",
                fix="fetch or copy the tokenizer files again, or choose another --model_type",
            )
        return found

    def needs(self, name: str) -> Any:
        """Return the folder's processor when it has what the adapter calls.

        Raises:
            ModelError: when the folder has no such processor.
        """
        if hasattr(self.parts.processor, name):
            return self.parts.processor
        raise ModelError(
            f"{str(self.parts.folder)!r}: {self.parts.model_type} reads images with the `{name}` of its processor, which is not there",
            fix="copy preprocessor_config.json and the processor's .py files of the model into the folder",
        )


def without(ids: torch.Tensor, places: Sequence[tuple[int, int]], mark: Sequence[int]) -> torch.Tensor:
    """Return a row of tokens with the few tokens `mark` in the place of each expanded image.

    >>> without(torch.tensor([1, 9, 9, 9, 2]), [(1, 4)], [-200]).tolist()
    [1, -200, 2]
    """
    pieces: list[torch.Tensor] = []
    last = 0
    for start, stop in places:
        pieces += [ids[last:start], ids.new_tensor(list(mark))]
        last = stop
    return torch.cat([*pieces, ids[last:]])


def with_features(embeds: torch.Tensor, call: Call, features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the embeddings of a batch with those of its images in their places.

    Args:
        embeds: `[batch, seq, hidden]`.
        call: the batch.
        features: `[tokens, hidden]` for each image, in the order of `Call.pictures`.

    Raises:
        ModelError: when the model makes another number of features than the tokens that were laid out for them.
    """
    rows: list[torch.Tensor] = []
    taken = iter(features)
    for row, media in enumerate(call.media):
        pieces: list[torch.Tensor] = []
        last = 0
        for start, stop in media.places:
            feature = next(taken)
            if len(feature) != stop - start:
                raise ModelError(
                    f"the model makes {len(feature)} features of an image that has {stop - start} tokens",
                    fix="check that weights, config.json and image settings are of one model",
                )
            pieces += [embeds[row, last:start], feature.to(embeds.dtype)]
            last = stop
        rows.append(torch.cat([*pieces, embeds[row, last:]]))
    return torch.stack(rows)


def media_of(batch: BatchMedia | None, rows: int) -> tuple[SampleMedia, ...]:
    """Return the media of each row, empty ones where a batch has none."""
    return batch.samples if batch is not None else (SampleMedia(),) * rows
