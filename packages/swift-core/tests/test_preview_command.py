"""`swift data preview` as a user runs it."""

import json
import re

import pytest
from swift_core.batching.preview import length_histogram, preview_samples
from swift_core.cli.data import main
from swift_core.config.preview import PreviewConfig
from swift_core.errors import ConfigError, DataError
from swift_core.protocols import EncodedSample
from swift_core.testing.tiny import make_tiny_model, make_tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(make_tiny_model(tmp_path_factory.mktemp("model"), max_length=128))


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A model, 你好\x1b[31m."}]},
        {"messages": [{"role": "user", "content": "Tell more."}, {"role": "assistant", "content": "More. " * 100}]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def run(capsys, *words):
    assert main(["preview", *words]) == 0
    return capsys.readouterr()


def test_text_shows_the_trained_part_and_the_counts(model, data, capsys):
    out = run(capsys, "--model", model, "--dataset", data, "--color", "never", "--dataset_shuffle", "false").out
    assert "⟦A model, 你好\\x1b[31m.<|im_end|>⟧" in out
    assert "\x1b" not in out
    assert "chats.jsonl:1" in out
    assert "1 of 2 samples kept" in out
    assert "dropped: longer than 128 tokens" in out
    assert re.search(r"\| █+ +1 +over 128", out)


def test_colour_paints_line_by_line(model, data, capsys):
    out = run(capsys, "--model", model, "--dataset", data, "--color", "always", "--max_length", "2000").out
    assert "\x1b[32mA model, 你好\\x1b[31m.<|im_end|>\x1b[0m" in out
    assert all(line.count("\x1b[0m") == line.count("\x1b[32m") + line.count("\x1b[90m") for line in out.splitlines())


def test_json_is_the_only_thing_on_stdout(model, data, capsys):
    captured = run(capsys, "--model", model, "--dataset", data, "--format", "json", "--max_length", "2000", "--num_samples", "-1")
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert len(rows) == 2
    tokenizer = make_tiny_tokenizer()
    for row in rows:
        assert len(row["input_ids"]) == len(row["labels"])
        assert tokenizer.decode(row["input_ids"], clean_up_tokenization_spaces=False) == row["text"]
        assert {label for label, token in zip(row["labels"], row["input_ids"], strict=True) if label != token} == {-100}
    assert "2 of 2 samples kept" in captured.err


def test_evaluation_data_is_measured_too(model, data, capsys):
    out = run(capsys, "--model", model, "--dataset", data, "--val_dataset", data, "--max_length", "2000", "--num_samples", "0").out
    assert "training data: length in tokens" in out
    assert "evaluation data: length in tokens" in out
    assert "--- sample" not in out


def test_bad_input(model, data):
    with pytest.raises(ConfigError, match="did you mean preview"):
        main(["previw"])
    with pytest.raises(ConfigError) as caught:
        main(["preview", "--num_samples", "-3"])
    assert "--num_samples" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        PreviewConfig(truncation_strategy="split")
    assert [problem.where for problem in caught.value.problems] == ["--model", "--dataset", "--truncation_strategy split"]
    with pytest.raises(DataError, match="longer than --max_length 5"):
        main(["preview", "--model", model, "--dataset", data, "--max_length", "5"])


def test_samples_without_loss_have_no_brackets():
    tokenizer = make_tiny_tokenizer()
    ids = tokenizer("hello there")["input_ids"]
    text = preview_samples([EncodedSample(ids, [-100] * len(ids)), EncodedSample(ids, [-100, *ids[1:]], "f:2")], tokenizer, color=False)
    assert "hello there" in text
    assert text.count("⟦") == 1
    assert f"(f:2): {len(ids)} tokens, {len(ids) - 1} trained" in text


def test_every_length_is_in_one_bar_of_the_histogram():
    lengths = [*range(10, 200), 5000]
    text = length_histogram(lengths, limit=100)
    bars = [line for line in text.splitlines() if "|" in line]
    assert sum(int(re.search(r"(\d+)(?:  (?:partly )?over 100)?$", line).group(1)) for line in bars) == len(lengths)
    assert bars[-1].split("|")[0].split()[-1] == "5,000"
    assert len(bars) <= 13
    assert length_histogram([7]).splitlines()[1].split() == ["7", "-", "7", "|", "█" * 40, "1"]
    assert length_histogram([]) == "no samples"
