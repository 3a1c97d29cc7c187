"""Tiny models with real tokenizers, made on disk in less than a second, so that tests need no network."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from swift_core.models.quiet import quiet_transformers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# Marks with {% generation %} are left out on purpose: most models have none, and the loss mask must be found without them.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SENTENCES = (
    "You are a helpful assistant. Who are you and who made you?",
    "I am a small language model, made for tests, and I answer every question in one short sentence.",
    "What is the capital of France? The capital of France is Paris.",
    "The quick brown fox jumps over the lazy dog; 0123456789 + 42 = ?",
    "Write a function that adds two numbers: def add(a, b): return a + b",
    "Please translate this sentence into Chinese, and then explain the grammar to me.",
    "Thank you! That is right. Is there anything else that I can do for you today?",
    "你好，请问你是谁？我是一个很小的语言模型。",
    "今天天气很好，我们去公园散步吧。谢谢你的帮助！",
    "中国的首都是北京，法国的首都是巴黎。请把这句话翻译成英文。",
)


def make_tiny_tokenizer(*, vocab_size: int = 512) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer with chatml tokens and template, trained on a few sentences.

    Any text survives encoding and decoding. The vocabulary has `vocab_size` tokens at most: 256 bytes, three special
    tokens, and as many merges as the sentences give.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def make_tiny_model(
    folder: Path,
    *,
    vocab_size: int = 512,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    max_length: int = 512,
    tie_word_embeddings: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a randomly initialised Llama model and its tokenizer into `folder` and return it.

    The same arguments give the same weights; the state of torch's random generator is left as it was.
    """
    tokenizer = make_tiny_tokenizer(vocab_size=vocab_size)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=max_length,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index("<|im_end|>"),
        pad_token_id=SPECIAL_TOKENS.index("<|endoftext|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    nn.Module.to(model, dtype=dtype)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
