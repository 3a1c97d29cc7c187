"""Named adapters beside one model: chosen by request, mixed in a batch, loaded and taken away while the engine runs."""

import io
import json
from pathlib import Path

import pytest
import torch
from swift_core.config.command import tuner_options_class
from swift_core.config.sections import ModelSection
from swift_core.errors import CheckpointError, ConfigError, DataError, EngineError, RequestError
from swift_core.protocols import AdapterEngine, TextDelta, Usage
from swift_core.registry import TUNERS
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.tuning import load_tuner
from swift_infer import InferRequest, RequestConfig, TransformersEngine
from swift_infer.adapter_names import split_name
from swift_infer.batch import answer_dataset
from swift_infer.chat.terminal import TerminalChat
from swift_infer.checkpoint import adopt_checkpoint
from swift_infer.config import DeployConfig, EngineConfig, InferConfig
from transformers import AutoModelForCausalLM

GREEDY = RequestConfig(max_tokens=6, temperature=0)
QUESTIONS = ["Who are you?", "a", "What is the capital of France?"]
needs_tuners = pytest.mark.skipif("lora" not in TUNERS, reason="adapters come with swift-tuners")


def ask(text, adapter=None):
    return InferRequest([{"role": "user", "content": text}], adapter=adapter)


def ids(responses):
    return [response.choices[0].token_ids for response in responses]


def make_adapter(base: Path, folder: Path, seed: int, kind: str = "lora", **options) -> Path:
    """Write an adapter that changes the answers, as a run would leave it."""
    tuner, known = load_tuner(kind), tuner_options_class(kind)
    assert known is not None
    model = tuner.prepare(AutoModelForCausalLM.from_pretrained(base), known(**options))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.5)
    folder.mkdir(parents=True)
    tuner.save(model, folder)
    (folder / "args.json").write_text(json.dumps({"model": str(base), "tuner_type": kind}))
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    base = make_tiny_model(root / "tiny")
    if "lora" not in TUNERS:
        return {"base": base}
    return {
        "base": base,
        "first": make_adapter(base, root / "first", 1, lora_rank=4),
        "second": make_adapter(base, root / "second", 2, lora_rank=2),
        "ia3": make_adapter(base, root / "ia3", 3, "ia3"),
        "ia3-two": make_adapter(base, root / "ia3-two", 4, "ia3"),
    }


@pytest.fixture(scope="module")
def answers(places):
    """Return name -> answers of an engine that holds that adapter for good, and of the model alone."""
    found = {}
    for name in places:
        engine = TransformersEngine(places["base"], adapters=[] if name == "base" else [places[name]], use_cpu=True)
        found[name] = ids(engine.infer([ask(text) for text in QUESTIONS], GREEDY))
        engine.close()
    assert len({str(one) for one in found.values()}) == len(found), "every adapter answers in its own way"
    return found


@needs_tuners
@pytest.mark.parametrize("pair", [("first", "second"), ("ia3", "ia3-two")])
def test_rows_of_one_call_take_the_adapters_they_ask_for(pair, places, answers):
    engine = TransformersEngine(places["base"], adapters={f"my.{name}": places[name] for name in pair}, use_cpu=True)
    assert isinstance(engine, AdapterEngine) and engine.adapters == [f"my.{name}" for name in pair]
    assert engine.model_name == "tiny"
    wanted = [*pair, "base", pair[0], "base"]
    texts = [0, 1, 2, 1, 0]
    asked = [ask(QUESTIONS[text], None if name == "base" else f"my.{name}") for name, text in zip(wanted, texts, strict=True)]
    assert ids(engine.infer(asked, GREEDY)) == [answers[name][text] for name, text in zip(wanted, texts, strict=True)]
    streamed = "".join(delta.text for delta in engine.stream(ask(QUESTIONS[0], f"my.{pair[1]}"), GREEDY))
    assert streamed == engine.infer([ask(QUESTIONS[0], f"my.{pair[1]}")], GREEDY)[0].choices[0].message.content
    engine.close()


@needs_tuners
def test_adapters_come_and_go_while_the_engine_runs(places, answers, tmp_path):
    engine = TransformersEngine(places["base"], use_cpu=True)

    def says(name=None):
        return ids(engine.infer([ask(text, name) for text in QUESTIONS], GREEDY))

    assert says() == answers["base"] and engine.adapters == []
    for _ in range(2):  # the last one taken away leaves the model as it was
        engine.add_adapter("a", places["first"])
        engine.add_adapter("b", places["second"])
        assert (says("a"), says("b"), says()) == (answers["first"], answers["second"], answers["base"])
        engine.remove_adapter("a")
        with pytest.raises(RequestError, match="no adapter 'a'"):
            says("a")
        assert says("b") == answers["second"]
        engine.remove_adapter("b")
        assert says() == answers["base"] and not hasattr(engine.model, "peft_config")
    with pytest.raises(EngineError, match="name of the model"):
        engine.add_adapter("tiny", places["first"])
    with pytest.raises(EngineError, match="no adapter 'b'"):
        engine.remove_adapter("b")
    engine.close()


@needs_tuners
def test_an_adapter_that_does_not_fit_leaves_the_engine_as_it_was(places, answers, tmp_path):
    wide = make_tiny_model(tmp_path / "wide", hidden=64)
    strange = make_adapter(wide, tmp_path / "strange", 5)
    engine = TransformersEngine(places["base"], use_cpu=True)
    for _ in range(2):  # on the bare model, then beside another adapter
        with pytest.raises(CheckpointError, match="does not fit"):
            engine.add_adapter("strange", strange)
        assert ids(engine.infer([ask(QUESTIONS[0])], GREEDY)) == answers["base"][:1]
        if not engine.adapters:
            engine.add_adapter("a", places["first"])
        assert engine.adapters == ["a"]
        assert ids(engine.infer([ask(QUESTIONS[0], "a")], GREEDY)) == answers["first"][:1]
    with pytest.raises(EngineError, match="already"):
        engine.add_adapter("a", places["second"])
    with pytest.raises(EngineError, match="whole model"):
        engine.add_adapter("whole", wide)
    engine.close()


@needs_tuners
def test_an_adapter_without_a_name_stays_alone(places):
    engine = TransformersEngine(places["base"], adapters=[places["first"]], use_cpu=True)
    with pytest.raises(EngineError, match="NAME=FOLDER"):
        engine.add_adapter("other", places["second"])
    engine.close()


@needs_tuners
def test_the_server_lists_adapters_and_a_request_chooses_by_model(places, answers):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient
    from swift_infer.config import ServerSection
    from swift_infer.server.app import create_app

    config = EngineConfig(
        loading=ModelSection(model=str(places["base"]), adapters=[f"lora-{name}={places[name]}" for name in ("first", "second")]),
        use_cpu=True,
    )
    engine = TransformersEngine.from_config(config)
    with TestClient(create_app(engine, ServerSection(served_model_name="m"), GREEDY), base_url="http://localhost") as client:
        listed = client.get("/v1/models").json()["data"]
        assert [(card["id"], card.get("parent")) for card in listed] == [("m", None), ("lora-first", "m"), ("lora-second", "m")]
        for model, name in (("m", "base"), ("lora-first", "first"), ("lora-second", "second")):
            body = {"model": model, "messages": [{"role": "user", "content": QUESTIONS[0]}]}
            answer = client.post("/v1/chat/completions", json=body).json()
            assert answer["model"] == model
            content = answer["choices"][0]["message"]["content"]
            # A character that was cut in the middle is left out.
            assert content and engine.tokenizer.decode(answers[name][0], skip_special_tokens=True).startswith(content)
        missing = client.post("/v1/chat/completions", json={"model": "x", "messages": [{"role": "user", "content": "a"}]})
        assert missing.status_code == 404 and "'lora-second'" in missing.json()["error"]["message"]
        engine.remove_adapter("lora-first")
        assert client.get("/v1/models/lora-first").status_code == 404
        assert client.get("/v1/models/lora-second").json()["parent"] == "m"
    engine.close()


def write_rows(file, choices):
    """Write the first question once for each choice; ... leaves the column out."""
    rows = [{"query": QUESTIONS[0], **({} if choice is ... else {"adapter": choice})} for choice in choices]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@needs_tuners
def test_the_column_adapter_chooses_row_by_row(places, answers, tmp_path):
    adapters = [f"{name}={places[name]}" for name in ("first", "second")]
    file = write_rows(tmp_path / "rows.jsonl", [..., "second", "tiny", "first"])
    given = {"model": str(places["base"]), "result_path": str(tmp_path / "r.jsonl"), "max_new_tokens": 6, "temperature": 0}
    config = InferConfig(**given, adapters=adapters, val_dataset=[file])
    engine = TransformersEngine(places["base"], adapters={name: places[name] for name in ("first", "second")}, use_cpu=True)
    expected = [
        engine.infer([ask(QUESTIONS[0], None if name == "base" else name)], GREEDY)[0].choices[0].message.content
        for name in ("first", "second", "base", "first")
    ]
    assert answer_dataset(config, None, lambda: engine) == 0
    found = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["response"] for line in found] == expected and len(set(expected)) == 3
    assert [line["extra"]["adapter"] for line in found[1:]] == ["second", "tiny", "first"]


@pytest.mark.parametrize("choice", ["third", 7, ["first"]])
def test_a_row_that_chooses_no_adapter_there_is_stops_before_the_model_is_loaded(choice, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", ["first", choice])
    config = InferConfig(model="m", adapters=["first=a", "second=b"], val_dataset=[file], result_path=str(tmp_path / "r.jsonl"))
    with pytest.raises(DataError, match=r"rows.jsonl:2.*column adapter holds.*one of first, second, or m for none"):
        answer_dataset(config, None, lambda: pytest.fail("loaded"))


@needs_tuners
@pytest.mark.parametrize("stream", [True, False])
def test_the_terminal_changes_adapters(places, answers, stream):
    engine = TransformersEngine(places["base"], adapters={name: places[name] for name in ("first", "second")}, use_cpu=True)
    words = {
        name: engine.infer([ask(QUESTIONS[0], None if name == "tiny" else name)], GREEDY)[0].choices[0].message.content
        for name in ("first", "second", "tiny")
    }
    q = QUESTIONS[0]
    typed = f"{q}\n/adapter second\n{q}\n/adapter\n/adapter thrid\n/clear\n{q}\n/adapter tiny\n{q}\n/adapter first\n{q}\n"
    out, notes = io.StringIO(), io.StringIO()
    chat = TerminalChat(engine, GREEDY, stream=stream, stdin=io.StringIO(typed), stdout=out, stderr=notes)
    assert chat.run() == 0
    assert out.getvalue() == "".join(f"{words[name]}\n" for name in ("first", "second", "second", "tiny", "first"))
    said = notes.getvalue()
    assert "first, second, tiny can answer, second does" in said
    assert "there is no adapter 'thrid'; first, second, tiny can answer, second does" in said
    assert "tiny answers now and the conversation starts over" in said
    engine.close()


def test_the_terminal_of_an_engine_without_adapters_knows_its_model_only():
    class Plain:
        name = model_name = "plain"

        def stream(self, request, config=None):
            assert request.adapter is None
            yield TextDelta("yes", 0, "stop", Usage(1, 1))

    out, notes = io.StringIO(), io.StringIO()
    assert TerminalChat(Plain(), GREEDY, stdin=io.StringIO("/adapter other\na\n"), stdout=out, stderr=notes).run() == 0
    assert "there is no adapter 'other'; plain can answer, plain does" in notes.getvalue() and out.getvalue() == "yes\n"


def test_names_of_adapters(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-4").mkdir()
    assert split_name("a=out/checkpoint-1") == ("a", "out/checkpoint-1")
    assert split_name("lr=1e-4") == (None, "lr=1e-4")
    assert split_name("out/run=3/checkpoint-1") == (None, "out/run=3/checkpoint-1")
    with pytest.raises(ConfigError, match="as well"):
        DeployConfig(model="m", adapters=["a=x"], served_model_name="a")
    for given, word in ((["a=x", "y"], "no name"), (["x", "y"], "no name"), (["a=x", "a=y"], "two adapters")):
        with pytest.raises(ConfigError, match=word):
            DeployConfig(model="m", adapters=given)


def test_settings_come_from_the_first_and_other_bases_are_refused(tmp_path):
    for name, base, system in (("one", "far/base", "Be brief."), ("two", "base", "Be kind."), ("three", "other", None)):
        (tmp_path / name).mkdir()
        args = {"model": base, "tuner_type": "lora", "system": system}
        (tmp_path / name / "args.json").write_text(json.dumps(args))
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    config = InferConfig(adapters=[f"{name}={tmp_path / name}" for name in ("one", "two")])
    _, notes = adopt_checkpoint(config)
    assert (config.loading.model, config.chat.system) == ("far/base", "Be brief.")
    assert any("two" in note and "Be kind." in note for note in notes)
    with pytest.raises(ConfigError, match="other"):
        adopt_checkpoint(InferConfig(adapters=[f"{name}={tmp_path / name}" for name in ("one", "three")]))
