"""Checkpoints of embeddings, rerankers and classifiers answer as they were trained: in files, and over HTTP."""

import base64
import json
import struct

import pytest
import torch
import torch.nn.functional as F
from swift_core.config.tasks import TaskSection
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError, RequestError
from swift_core.models.loading import load_model
from swift_core.protocols import Message, Sample
from swift_core.tasks.embedding import Embedding
from swift_core.tasks.headed import prepare, train
from swift_core.tasks.reranker import Reranker
from swift_core.tasks.texts import pad_texts
from swift_core.testing.tiny import make_tiny_model
from swift_infer.cli import run_infer
from swift_infer.config import DeployConfig, InferConfig, ServerSection
from swift_infer.engines.texts import TextEngine

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient
from swift_core.protocols import RequestConfig
from swift_infer.server.app import create_app


def user(text):
    return [{"role": "user", "content": text}]


ROWS = {
    "embedding": [
        {"messages": user(f"a {n}"), "positive_messages": [user(f"b {n}")], "negative_messages": [user("far")]} for n in range(3)
    ],
    "reranker": [{"messages": user(f"a {n}"), "positive_messages": [user(f"b {n}")], "negative_messages": [user("far")]} for n in range(3)],
    "seq_cls": [{"messages": user(f"text {n}"), "label": n} for n in range(3)],
    "seq_cls numbers": [{"messages": [*user("a"), {"role": "assistant", "content": f"b {n}"}], "label": n - 0.5} for n in range(3)],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("base"), max_length=2048))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    made = {}

    def checkpoint(task):
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            file = folder / "rows.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[task]), encoding="utf-8")
            config = SftConfig(
                model=base,
                dataset=[str(file)],
                task_type=task.split()[0],
                tuner_type="full",
                max_steps=2,
                learning_rate=1e-2,
                per_device_train_batch_size=3,
                gradient_accumulation_steps=1,
                report_to=["none"],
                use_cpu=True,
                output_dir=str(folder / "run"),
            )
            made[task] = (train(config).last_checkpoint, prepare(config), file)
        return made[task]

    return checkpoint


def engine_of(folder):
    from swift_infer.checkpoint import adopt_checkpoint

    config = DeployConfig(model=str(folder), use_cpu=True)
    adopt_checkpoint(config)
    return TextEngine(config.engine_config())


def model_of(folder, task):
    config = SftConfig(model=str(folder), dataset=["d"], task_type=task, tuner_type="full")
    return load_model(config.loading, folder, dtype=torch.float32, task_type=task).eval()


def sample(text):
    return Sample([Message(role="user", content=text)])


def test_vectors_are_those_of_training(trained):
    folder, prepared, _ = trained("embedding")
    engine = engine_of(folder)
    task = Embedding(TaskSection(task_type="embedding"), pooling="last", dim=engine.model.config.hidden_size)
    anchors = sorted(prepared.train, key=lambda sample: sample.input_ids)
    with torch.no_grad():
        expected = F.normalize(task.embed(model_of(folder, "embedding"), pad_texts(anchors, pad_token_id=0)), dim=-1)
    found = engine.embed([sample(f"a {n}") for n in range(3)])
    order = sorted(range(3), key=lambda n: engine._encoder.text(sample(f"a {n}")).input_ids)
    torch.testing.assert_close(torch.tensor(found.vectors)[order], expected, atol=1e-5, rtol=1e-4)
    assert found.usage.prompt_tokens == sum(len(part) for part in anchors)
    near = engine.score([(sample("a 0"), sample("a 0"))])
    assert near.scores == [pytest.approx(1.0, abs=1e-5)]
    with pytest.raises(RequestError, match="seq_cls"):
        engine.classify([sample("a")])


def test_scores_are_those_of_training(trained):
    folder, prepared, _ = trained("reranker")
    engine = engine_of(folder)
    group = next(item for item in prepared.train if item.origin.endswith(":1"))
    task = Reranker(TaskSection(task_type="reranker"))
    with torch.no_grad():
        texts = pad_texts([*group.positives, *group.negatives], pad_token_id=int(prepared.tokenizer.pad_token_id))
        expected = torch.sigmoid(task.score(engine.model, texts))
    found = engine.score([(sample("a 0"), sample("b 0")), (sample("a 0"), sample("far"))])
    torch.testing.assert_close(torch.tensor(found.scores), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("task", "key"), [("embedding", "embedding"), ("reranker", "scores"), ("seq_cls", "probabilities")])
def test_every_row_of_a_file_gets_its_line(trained, tmp_path, task, key):
    folder, _, file = trained(task)
    out = tmp_path / "out.jsonl"
    assert run_infer(InferConfig(model=str(folder), val_dataset=[str(file)], result_path=str(out), use_cpu=True)) == 0
    rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(rows) == 3
    assert all(row[key] for row in rows)
    if task == "seq_cls":
        assert [row["labels"] for row in rows] == [0, 1, 2]
        assert all(sum(row["probabilities"]) == pytest.approx(1) for row in rows)
        assert all(row["probabilities"][row["response"]] == max(row["probabilities"]) for row in rows)
    if task == "reranker":
        assert rows[0]["documents"] == ["b 0", "far"]
        assert rows[0]["labels"] == [1, 0]
    with pytest.raises(ConfigError, match="does not chat"):
        run_infer(InferConfig(model=str(folder), use_cpu=True))


def client_of(folder):
    engine = engine_of(folder)
    app = create_app(engine, ServerSection(served_model_name="m"), RequestConfig(), context_length=engine.context_length)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def test_embeddings_over_http(trained):
    client = client_of(trained("embedding")[0])
    found = client.post("/v1/embeddings", json={"model": "m", "input": ["a 0", "b 0"]}).json()
    assert [item["index"] for item in found["data"]] == [0, 1]
    assert found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"] > 0
    vector = found["data"][0]["embedding"]
    packed = client.post("/v1/embeddings", json={"model": "m", "input": "a 0", "encoding_format": "base64"}).json()
    raw = base64.b64decode(packed["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(vector)}f", raw)) == pytest.approx(vector, abs=1e-5)
    short = client.post("/v1/embeddings", json={"model": "m", "input": "a 0", "dimensions": 4}).json()["data"][0]["embedding"]
    assert len(short) == 4
    assert sum(value * value for value in short) == pytest.approx(1, abs=1e-5)
    assert client.post("/v1/embeddings", json={"model": "m", "input": "a", "dimensions": 10**6}).status_code == 400
    assert client.post("/v1/embeddings", json={"model": "m", "input": []}).status_code == 400
    assert client.post("/v1/embeddings", json={"model": "other", "input": "a"}).status_code == 404
    refused = client.post("/v1/chat/completions", json={"model": "m", "messages": user("hi")})
    assert refused.status_code == 400
    assert "does not chat" in refused.json()["error"]["message"]


def test_rerank_and_score_over_http(trained):
    client = client_of(trained("reranker")[0])
    body = {"model": "m", "query": "a 0", "documents": ["b 0", {"text": "far"}, "b 2"]}
    found = client.post("/v1/rerank", json=body).json()
    scores = [item["relevance_score"] for item in found["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(item["index"] for item in found["results"]) == [0, 1, 2]
    assert found["results"][0]["document"]["text"] in ("b 0", "far", "b 2")
    top = client.post("/v2/rerank", json={**body, "top_n": 1}).json()["results"]
    assert len(top) == 1
    assert "document" not in top[0]
    pairs = client.post("/v1/score", json={"model": "m", "text_1": "a 0", "text_2": ["b 0", "far"]}).json()["data"]
    by_index = {item["index"]: item["relevance_score"] for item in found["results"]}
    assert [pair["score"] for pair in pairs] == pytest.approx([by_index[0], by_index[1]], abs=1e-5)
    wrong = client.post("/v1/score", json={"model": "m", "text_1": ["a", "b"], "text_2": ["c", "d", "e"]})
    assert wrong.status_code == 400
    assert client.post("/v1/embeddings", json={"model": "m", "input": "a"}).status_code == 400


def test_classes_over_http(trained):
    client = client_of(trained("seq_cls")[0])
    found = client.post("/v1/classify", json={"model": "m", "input": ["text 0", "text 1"]}).json()["data"]
    assert [item["num_classes"] for item in found] == [3, 3]
    assert all(item["probs"][item["label"]] == max(item["probs"]) for item in found)


def test_a_classifier_of_numbers_scores_answers_over_http(trained):
    folder = trained("seq_cls numbers")[0]
    client = client_of(folder)
    found = client.post("/v1/score", json={"model": "m", "text_1": "a", "text_2": ["b 0", "b 2"]}).json()["data"]
    conversations = [Sample([*user("a"), Message(role="assistant", content=text)]) for text in ("b 0", "b 2")]
    expected = engine_of(folder).classify(conversations).scores
    assert [item["score"] for item in found] == pytest.approx([row[0] for row in expected], abs=1e-5)
    assert expected[0] != expected[1]
