"""Token ids from a memory of words are those of the tokenizer's library, or the memory is not used."""

import pickle
import random

import pytest
from swift_core.templates import words as module
from swift_core.templates.mask import label_by_offsets
from swift_core.templates.tokens import TextTokens
from swift_core.templates.words import Pieces, Words
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
SPLITS = {
    "gpt2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "smollm": [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "qwen": [rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{TAIL}"],
    "llama3": [rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{TAIL}"],
    "o200k": [rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}{{1,3}}|{TAIL}"],
    "deepseek": [
        r"\p{N}{1,3}",
        "[一-龥]+",
        rf"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{{|}}~][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+|{TAIL}",
    ],
}
ADDED = ["<|im_start|>", "<|im_end|>", "<|im", "</s>"]


def library(steps, **changes) -> Tokenizer:
    """Return a small byte-level BPE tokenizer with these pre-tokenizers."""
    made = Tokenizer(models.BPE())
    parts = [pre_tokenizers.Split(Regex(step), "isolated") if isinstance(step, str) else step for step in steps]
    if isinstance(steps[0], str):
        parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(["the thing that they're telling  them 123 1234\n\n in the end. It's HTTPServer;\r\n\r\n ok"] * 3, trainer)
    made.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in ADDED])
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def texts(count: int = 60) -> list[str]:
    draw = random.Random(3)
    bits = [
        *ADDED,
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "'s",
        "'LL",
        "the",
        "Thing",
        "HTTPServer",
        "1",
        "12345",
        "...",
        "\x00",
        "\x1c",
        "<|",
        "_",
        "a b",
    ]
    return ["".join(draw.choices(bits, k=draw.randint(0, 40))) for _ in range(count)]


@pytest.mark.parametrize("name", SPLITS)
def test_ids_and_labels_are_those_of_the_library(name):
    backend = library(SPLITS[name])
    words = Words.of(backend)
    assert words is not None
    draw = random.Random(5)
    for text in texts():
        found = words.ids(text)
        expected = backend.encode(text, add_special_tokens=False)
        assert found is not None
        ids, pieces = found
        assert ids == expected.ids
        borders = sorted(draw.sample(range(len(text) + 1), min(4, len(text) + 1) // 2 * 2))
        spans = list(zip(borders[::2], borders[1::2], strict=True))
        labels = pieces.labels(ids, spans)
        assert labels is None or labels == label_by_offsets(ids, expected.offsets, text, spans)
        # The usual case: an answer between two words.
        ends = [0, *(len("".join(pieces.words[: count + 1])) for count in range(len(pieces.words)))]
        span = (ends[len(ends) // 3], ends[-1])
        if not text.endswith(" "):
            assert pieces.labels(ids, [span]) == label_by_offsets(ids, expected.offsets, text, [span])


def test_trimmed_offsets_do_not_change_labels():
    backend = library(SPLITS["gpt2"], post_processor=processors.ByteLevel(trim_offsets=True))
    words = Words.of(backend)
    assert words is not None
    text = "a the  thing  12 "
    for start in range(len(text)):
        for stop in range(start, len(text) + 1):
            found = words.ids(text)
            assert found is not None
            ids, pieces = found
            labels = pieces.labels(ids, [(start, stop)])
            expected = label_by_offsets(ids, backend.encode(text, add_special_tokens=False).offsets, text, [(start, stop)])
            assert labels is None or labels == expected, (start, stop)


@pytest.mark.parametrize(
    "backend",
    [
        library(SPLITS["gpt2"], normalizer=normalizers.Lowercase()),
        library([pre_tokenizers.ByteLevel(add_prefix_space=True)]),
        library([pre_tokenizers.Metaspace()]),
        library([r"(\s+)|\S+"]),
        library([r"\p{Latin}+|\P{L}+"]),
        Tokenizer(models.WordLevel({"a": 0}, "a")),
    ],
)
def test_tokenizers_that_might_differ_are_left_to_the_library(backend):
    assert Words.of(backend) is None


@pytest.mark.parametrize("option", ["lstrip", "rstrip", "single_word", "normalized"])
def test_added_tokens_with_rules_of_their_own_are_left_to_the_library(option):
    backend = library(SPLITS["gpt2"])
    backend.add_tokens([AddedToken("<mine>", **{"normalized": False, option: True})])
    assert Words.of(backend) is None


def test_dropout_is_left_to_the_library():
    backend = library(SPLITS["gpt2"])
    backend.model.dropout = 0.1
    assert Words.of(backend) is None


def test_a_full_memory_starts_again(monkeypatch):
    monkeypatch.setattr(module, "HELD", 8)
    backend = library(SPLITS["gpt2"])
    words = Words.of(backend)
    for text in texts():
        assert words.ids(text)[0] == backend.encode(text, add_special_tokens=False).ids


def both(tokenizer, batch):
    tokens = TextTokens(tokenizer)
    return tokens, [
        (ids, tokens.labels(ids, places, text, [(1, 9)])) for text, (ids, places) in zip(batch, tokens.encode(batch), strict=True)
    ]


def test_batches_mix_both_ways_and_keep_their_order():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library(SPLITS["qwen"]))
    batch = [text + ("é你" if number % 3 == 0 else "") + "0123456789" for number, text in enumerate(texts(90))]
    tokens, found = both(tokenizer, batch)
    kinds = {isinstance(places, Pieces) for _, places in tokens.encode(batch)}
    assert kinds == {True, False}
    assert found == [both(tokenizer, [text])[1][0] for text in batch]
    again = pickle.loads(pickle.dumps(tokens))
    assert [ids for ids, _ in again.encode(batch)] == [ids for ids, _ in found]


def test_new_tokens_are_seen():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library(SPLITS["qwen"]))
    tokens, batch = TextTokens(tokenizer), ["a new_token here"] * 40
    before = next(tokens.encode(batch))[0]
    tokenizer.add_tokens(["new_token"])
    after = next(tokens.encode(batch))[0]
    assert before != after == tokens.ids(batch[0])


def test_a_memory_that_gives_other_ids_is_dropped(monkeypatch):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library(SPLITS["qwen"]))
    tokens, batch = TextTokens(tokenizer), texts(50)
    list(tokens.encode(batch))
    monkeypatch.setattr(tokens._words, "ids", lambda text: ([0], Pieces([text], {text: (0,)})))
    assert [ids for ids, _ in tokens.encode(batch)] == [tokens.ids(text) for text in batch]
    assert tokens._words is None
