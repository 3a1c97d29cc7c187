"""Answers in a given form, and forms that are meant to do harm: refused or bounded, and the others are served."""

import json
import threading
import time
from contextlib import suppress

import pytest
from swift_core.errors import EngineError, MissingDependencyError, RequestError
from swift_core.protocols import StructuredOutput
from swift_core.testing.tiny import make_tiny_model
from swift_infer import InferRequest, RequestConfig, TransformersEngine
from swift_infer.engines import structured
from swift_infer.engines.structured import _CACHED, Grammars

library = pytest.importorskip("llguidance")
ASK = InferRequest([{"role": "user", "content": "a"}])
SECONDS = 20


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    engine = TransformersEngine(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"), use_cpu=True)
    yield engine
    engine.close()


def answer(engine, **form):
    return engine.infer([ASK], RequestConfig(max_tokens=60, temperature=0, structured=StructuredOutput(**form)))[0].choices[0]


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_schemas_hold_at_any_temperature(engine, temperature):
    schema = {
        "type": "object",
        "properties": {
            "name": {"enum": ["Oslo", "Rome"]},
            "days": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2},
        },
        "required": ["name", "days"],
        "additionalProperties": False,
    }
    config = RequestConfig(max_tokens=120, temperature=temperature, seed=5, n=3, structured=StructuredOutput(json_schema=schema))
    for choice in engine.infer([ASK], config)[0].choices:
        value = json.loads(choice.message.content)
        assert choice.finish_reason == "stop" and value["name"] in ("Oslo", "Rome") and len(value["days"]) == 2


def test_free_and_bound_answers_share_a_batch(engine):
    free = RequestConfig(max_tokens=12, temperature=0)
    alone = engine.infer([ASK], free)[0].choices[0].token_ids
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(answer(engine, choice=("yes", "no")).message.content)),
        threading.Thread(target=lambda: found.append(engine.infer([ASK], free)[0].choices[0].token_ids)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert alone in found and any(one in ("yes", "no") for one in found)


@pytest.mark.parametrize(
    "form",
    [
        {"regex": "("},
        {"regex": "(?=a)b"},
        {"regex": "a" * 70_000},
        {"json_schema": {"type": "nonsense"}},
        {"json_schema": {"$ref": "#/missing"}},
        {"json_schema": {"type": "string", "pattern": "("}},
    ],
)
def test_forms_that_are_none_are_refused_at_once(engine, form):
    with pytest.raises(RequestError, match="form of the answer"):
        answer(engine, **form)
    assert answer(engine, choice=("yes",)).message.content == "yes"


@pytest.mark.parametrize(
    "form",
    [
        {"regex": "(a+)+b"},
        {"regex": "(?:.{0,9999}){999}"},
        {"regex": "(x+x+)+y"},
        {
            "json_schema": {
                "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "array", "items": {"$ref": "#/$defs/a"}}]}},
                "$ref": "#/$defs/a",
            }
        },
    ],
)
def test_evil_forms_take_bounded_time_and_hurt_nobody(engine, form):
    started = time.process_time()
    with suppress(RequestError, EngineError):
        answer(engine, **form)
    assert time.process_time() - started < SECONDS
    assert engine.error is None and answer(engine, choice=("no",)).message.content == "no"


def test_the_cache_of_grammars_is_bounded(engine):
    grammars = Grammars(engine.tokenizer, engine.prompts.vocabulary, [2])
    for number in range(_CACHED + 20):
        grammars.constraint(StructuredOutput(choice=(f"c{number}",)))
    assert len(grammars._compiled) == _CACHED


def test_a_schema_cannot_change_the_compilers_own_settings(engine):
    schema = {"x-guidance": {"whitespace_pattern": "[ ]{500}"}, "type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    assert len(answer(engine, json_schema={**schema, "additionalProperties": False}).message.content) < 40


def test_without_the_library_the_fix_is_told(engine, monkeypatch):
    monkeypatch.setattr(structured, "available", lambda: False)
    with pytest.raises(MissingDependencyError, match="structured"):
        Grammars(engine.tokenizer, engine.prompts.vocabulary, [2]).constraint(StructuredOutput(choice=("a",)))
