"""Engines that need a GPU: every name they use is one of the library at the locked version, read from its wheel.

The table `engine_signatures.json` is written by `tools/record_signatures.py`; nothing here has run the libraries themselves.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
from swift_core.config.sections import ModelSection
from swift_core.protocols import RequestConfig, StructuredOutput
from swift_infer.config import EngineConfig
from swift_infer.engines.answer import Answer
from swift_infer.engines.lines import Line
from swift_infer.engines.sampling import resolve_drawing

TABLE = json.loads((Path(__file__).parent / "engine_signatures.json").read_text())
CONFIG = RequestConfig(temperature=0.7, top_k=5, top_p=0.9, seed=3, stop=("x",), min_tokens=2, logprobs=3)
FORM = StructuredOutput(json_schema={"type": "object"})


@pytest.fixture
def module_of(monkeypatch):
    def load(name):
        if importlib.util.find_spec(name) is None:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        return importlib.import_module(f"swift_infer.engines.{name}")

    yield load
    for name in TABLE:
        sys.modules.pop(f"swift_infer.engines.{name}", None)


def line(config):
    return Line(0, Answer(str, stop_ids=[2], stops=(), limit=9), resolve_drawing(config, None), 3)


def keywords_of(module, function):
    """Return the names of keyword arguments of all calls of a function in a module's source."""
    tree = ast.parse(Path(module.__file__).read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == function
    ]
    assert calls, function
    return {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}


def test_the_table_is_of_the_locked_versions():
    wanted = {line.partition(";")[0].strip() for line in importlib.metadata.requires("swift-infer") or []}
    assert all(f"{library}=={table['version']}" in wanted for library, table in TABLE.items())
    assert all(names for table in TABLE.values() for names in table.values())


@pytest.mark.parametrize("structured", [None, FORM, StructuredOutput(regex="a+"), StructuredOutput(choice=("a.", "b"))])
def test_sglang(module_of, structured):
    module, table = module_of("sglang"), TABLE["sglang"]
    config = EngineConfig(loading=ModelSection(model="m"), engine_kwargs={"tp_size": 2})
    assert module.server_arguments(config, Path("m"), 512).keys() <= set(table["ServerArgs"])
    request = RequestConfig(
        **{**{name: getattr(CONFIG, name) for name in CONFIG.__slots__}, "structured": structured, "logit_bias": {1: 2.0}}
    )
    values = module.sampling_arguments(request, line(request), [2])
    assert values.keys() <= set(table["SamplingParams"])
    assert (values["max_new_tokens"], values["sampling_seed"], values["top_k"], values["stop_token_ids"]) == (9, 3, 5, [2])
    for function in ("async_generate", "async_load_lora_adapter", "async_unload_lora_adapter", "update_weights_from_disk"):
        assert keywords_of(module, function) <= set(table[f"Engine.{function}"])
    assert keywords_of(module, "abort_request") <= set(table["TokenizerManager.abort_request"])
    if structured is not None and structured.choice:
        assert values["regex"] == r"(a\.|b)"


@pytest.mark.parametrize("structured", [None, FORM, StructuredOutput(regex="a+")])
def test_lmdeploy(module_of, structured):
    module, table = module_of("lmdeploy"), TABLE["lmdeploy"]
    config = EngineConfig(loading=ModelSection(model="m"), engine_kwargs={"tp": 2})
    assert module.backend_arguments(config, 512, {}).keys() <= set(table["PytorchEngineConfig"])
    request = RequestConfig(**{**{name: getattr(CONFIG, name) for name in CONFIG.__slots__}, "structured": structured})
    values = module.generation_arguments(request, line(request), [2])
    assert values.keys() <= set(table["GenerationConfig"])
    assert (values["max_new_tokens"], values["random_seed"], values["do_sample"]) == (9, 3, True)
    assert keywords_of(module, "preprocess") <= set(table["AsyncEngine.preprocess"])
    assert keywords_of(module, "pipeline") <= set(table["pipeline"])
    assert {"token_ids", "logprobs"} <= set(table["GenOut"])
    with pytest.raises(ValueError, match="presence_penalty"):
        penalised = RequestConfig(presence_penalty=1.0)
        module.generation_arguments(penalised, line(penalised), [])
