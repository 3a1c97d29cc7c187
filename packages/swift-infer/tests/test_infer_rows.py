"""Answering a data set, and talking in the terminal, with a stand-in engine."""

import io
import json

import pytest
from swift_core.errors import CheckpointError, DataError, EngineError, RequestError
from swift_core.protocols import AssistantMessage, ChatChoice, InferResponse, RequestConfig, TextDelta, Usage
from swift_infer.batch import answer_dataset
from swift_infer.chat.terminal import TerminalChat
from swift_infer.checkpoint import Checkpoint
from swift_infer.config import InferConfig


class Echo:
    """Answers with the number of messages and the last text."""

    name = model_name = "echo"

    def __init__(self, fail_after=None):
        self.seen = []
        self.fail_after = fail_after
        self.closed = False

    def infer(self, requests, config=None):
        if self.fail_after is not None and len(self.seen) >= self.fail_after:
            raise EngineError("the machine stops")
        self.seen += requests
        return [InferResponse([ChatChoice(0, AssistantMessage(self.text(r)), "stop", [1, 2])], Usage(3, 2)) for r in requests]

    def text(self, request):
        if "too long" in request.messages[-1]["content"]:
            raise RequestError("too many tokens")
        return f"{len(request.messages)}:{request.messages[-1]['content']}"

    def stream(self, request, config=None):
        yield TextDelta(self.text(request))
        yield TextDelta("!", 0, "stop", Usage(3, 2))

    def close(self):
        self.closed = True


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = [{"messages": [{"role": "user", "content": f"q{i} \u2028 你好"}, {"role": "assistant", "content": f"a{i}"}]} for i in range(5)]
    lines.append({"messages": [{"role": "user", "content": "open"}]})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def configure(rows, path, **more):
    return InferConfig(model="m", val_dataset=[str(rows)], result_path=str(path), max_batch_size=2, write_batch_size=2, **more)


def read(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_every_row_is_answered_in_order_with_its_reference(rows, tmp_path):
    path, engine = tmp_path / "new" / "result.jsonl", Echo()
    assert answer_dataset(configure(rows, path), None, lambda: engine) == 0
    found = read(path)
    assert [row["labels"] for row in found] == ["a0", "a1", "a2", "a3", "a4", None]
    assert found[0]["response"] == "1:q0 \u2028 你好"
    assert found[0]["messages"][-1] == {"role": "assistant", "content": found[0]["response"]}
    assert found[1]["origin"].endswith("rows.jsonl:2")
    assert found[0]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert engine.closed


@pytest.mark.parametrize("cut", [0, 7])
def test_an_interrupted_file_is_continued_to_the_same_bytes(rows, tmp_path, cut):
    whole, path = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    answer_dataset(configure(rows, whole), None, Echo)
    with pytest.raises(EngineError):
        answer_dataset(configure(rows, path), None, lambda: Echo(fail_after=4))
    assert len(read(path)) == 4
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    engine = Echo()
    answer_dataset(configure(rows, path), None, lambda: engine)
    assert path.read_bytes() == whole.read_bytes()
    assert len(engine.seen) == (3 if cut else 2)


def test_a_complete_file_needs_no_model(rows, tmp_path):
    path = tmp_path / "r.jsonl"
    answer_dataset(configure(rows, path), None, Echo)
    assert answer_dataset(configure(rows, path), None, lambda: pytest.fail("loaded")) == 0


def test_answers_to_other_rows_or_of_another_model_are_refused(rows, tmp_path):
    path = tmp_path / "r.jsonl"
    answer_dataset(configure(rows, path), None, Echo)
    before = path.read_bytes()
    other = InferConfig(model="m2", val_dataset=[str(rows)], result_path=str(path))
    with pytest.raises(DataError, match="answered by 'm'"):
        answer_dataset(other, None, Echo)
    with pytest.raises(DataError, match=r"r\.jsonl:4: .*more lines"):
        answer_dataset(configure(rows, path, val_dataset_sample=3), None, Echo)
    rows.write_text(rows.read_text().replace("q1", "changed"))
    with pytest.raises(DataError, match=r"r\.jsonl:2: .*another question"):
        answer_dataset(configure(rows, path), None, Echo)
    assert path.read_bytes() == before


def test_results_of_a_checkpoint_go_into_its_folder(rows, tmp_path):
    config = InferConfig(model="m", val_dataset=[str(rows)], val_dataset_sample=1)
    answer_dataset(config, Checkpoint(tmp_path / "c", {"tuner_type": "full"}), Echo)
    (found,) = (tmp_path / "c" / "infer_result").glob("*.jsonl")
    assert len(read(found)) == 1


def test_the_evaluation_split_of_a_run_is_rebuilt(rows, tmp_path):
    config = InferConfig(model="m", load_data_args=True, result_path=str(tmp_path / "r.jsonl"))
    args = {"dataset": [str(rows) + "#5"], "split_dataset_ratio": 0.4, "data_seed": 7}
    answer_dataset(config, Checkpoint(tmp_path, args), Echo)
    assert len(read(tmp_path / "r.jsonl")) == 2
    with pytest.raises(CheckpointError, match="no evaluation data"):
        answer_dataset(config, Checkpoint(tmp_path, {"dataset": [str(rows)]}), Echo)


def talk(text, **options):
    out, notes = io.StringIO(), io.StringIO()
    chat = TerminalChat(Echo(), RequestConfig(), stdin=io.StringIO(text), stdout=out, stderr=notes, **options)
    assert chat.run() == 0
    return out.getvalue(), notes.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\n", "1:a!\n3:b!\n"),
        ("a\nclear\nb\n", "1:a!\n1:b!\n"),
        ("a\n/system be brief\nb\nc\n/reset-system\nd", "1:a!\n2:b!\n4:c!\n1:d!\n"),
        ("/multi\na\nb\n#\n", "1:a\nb!\n"),
        ("/multi\na", "1:a!\n"),
        ("exit\na\n", ""),
        ("\n  \nclear the table\n", "1:clear the table!\n"),
        ("a\ntoo long\nb\n", "1:a!\n3:b!\n"),
        ("/nothing\n/etc/passwd is a file\n", "1:/etc/passwd is a file!\n"),
    ],
)
def test_conversation_over_a_pipe(text, shown):
    assert talk(text)[0] == shown


def test_notes_and_errors_stay_off_stdout():
    out, notes = talk("too long\n/help\n/nothing\na\n")
    assert out == "1:a!\n"
    assert "error: too many tokens" in notes and "/multi" in notes and "no command /nothing" in notes and "tokens/s" in notes


def test_whole_answers_without_streaming():
    assert talk("a\nb\n", stream=False)[0] == "1:a\n3:b\n"


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said():
    class Endless(Echo):
        def stream(self, request, config=None):
            try:
                yield TextDelta("begun")
                raise KeyboardInterrupt
            finally:
                self.closed = True

    engine, out = Endless(), io.StringIO()
    chat = TerminalChat(engine, RequestConfig(), stdin=io.StringIO("a\n"), stdout=out, stderr=io.StringIO())
    chat.run()
    assert out.getvalue() == "begun\n"
    assert engine.closed
    assert chat.messages[-1] == {"role": "assistant", "content": "begun"}
