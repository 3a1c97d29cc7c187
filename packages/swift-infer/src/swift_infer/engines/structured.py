"""Answers that keep to a JSON schema, a pattern or a choice. The only file that imports llguidance.

Its grammars are compiled and followed with limits on size and work, so that no schema or pattern of a client can hold up the others.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import threading
from collections import OrderedDict
from typing import Any

import torch
from swift_core.errors import EngineError, MissingDependencyError, RequestError
from swift_core.protocols import StructuredOutput
from torch import Tensor

_CACHED = 64
_LONGEST = 65536


def available() -> bool:
    """Say whether the library is installed."""
    return importlib.util.find_spec("llguidance") is not None


class Grammars:
    """Compiles forms for one tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers.
        vocabulary: number of logits.
        stop_ids: tokens that may end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, stop_ids: list[int]) -> None:
        self._source = (tokenizer, vocabulary, stop_ids)
        self._tokens: Any = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, form: StructuredOutput) -> Grammar:
        """Return a fresh constraint of a form.

        Raises:
            RequestError: when the form cannot be compiled.
            MissingDependencyError: when the library is absent.
        """
        if not available():
            raise MissingDependencyError("llguidance", needed_for="an answer in a given form", install="swift-infer[structured]")
        library: Any = importlib.import_module("llguidance")
        text = _grammar_of(library, form)
        with self._lock:
            if self._tokens is None:
                tokenizer, vocabulary, stop_ids = self._source
                made: Any = importlib.import_module("llguidance.hf").from_tokenizer(
                    tokenizer, n_vocab=vocabulary, eos_token=stop_ids or None
                )
                self._tokens = made
            found = self._compiled.get(text)
            if found is None:
                found = library.LLMatcher(self._tokens, text, log_level=0)
                if found.is_error():
                    raise _refusal(found.get_error())
                self._compiled[text] = found
                while len(self._compiled) > _CACHED:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(text)
            return Grammar(found.deep_copy(), self._source[1])


class Grammar:
    """Follows one answer through a grammar.

    Args:
        matcher: at the start.
        vocabulary: number of logits.
    """

    def __init__(self, matcher: Any, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary

    def mask(self, logits: Tensor) -> None:
        """Set the logits `[vocab]` of tokens that cannot come next to -inf.

        Raises:
            EngineError: when the form takes more work than a token may.
        """
        packed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise EngineError(f"the form of the answer cannot be followed: {_short(self._matcher.get_error())}", fix="make it simpler")
        bits = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
        allowed = ((bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten()[: self._vocabulary].bool()
        logits[: len(allowed)].masked_fill_(~allowed.to(logits.device), -torch.inf)
        logits[len(allowed) :] = -torch.inf

    def push(self, token: int) -> None:
        """Take a token that was written."""
        self._matcher.consume_token(token)


def _grammar_of(library: Any, form: StructuredOutput) -> str:
    if form.json_schema is not None:
        schema = form.json_schema or {"type": "object"}
        # Settings of the compiler are not the client's to make.
        source = json.dumps({name: value for name, value in schema.items() if name != "x-guidance"})
    else:
        source = form.regex if form.regex is not None else "".join(form.choice or ())
    if len(source) > _LONGEST:
        raise RequestError(f"the form of the answer has {len(source)} characters, at most {_LONGEST} are allowed", fix="make it smaller")
    try:
        if form.json_schema is not None:
            # A model that may write any number of blanks may write nothing else.
            return library.LLMatcher.grammar_from_json_schema(source, overrides={"whitespace_flexible": False})
        if form.regex is not None:
            return library.LLMatcher.grammar_from_regex(form.regex)
        texts = " | ".join(json.dumps(text) for text in form.choice or ())
        return library.LLMatcher.grammar_from_lark(f"start: {texts}")
    except ValueError as error:
        raise _refusal(str(error)) from error


def _refusal(why: str) -> RequestError:
    return RequestError(f"the form of the answer cannot be compiled: {_short(why)}", fix="send a schema or pattern that is simpler")


def _short(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else "unknown"
