"""Words, files and Python values become one checked config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from swift_core.config.load import load_config, understand
from swift_core.config.training import PtConfig, SftConfig, TrainingConfig
from swift_core.errors import ConfigError

MINIMAL = ["--model", "m", "--dataset", "d.jsonl", "--tuner_type", "full"]


def problems(*words: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_config(SftConfig, words)
    return {problem.where: str(problem) for problem in caught.value.problems}


def test_flags_reach_their_section_with_their_type() -> None:
    config = load_config(
        SftConfig,
        [
            *MINIMAL,
            "--learning-rate",
            "2e-4",
            "--val_dataset",
            "a",
            "b",
            "--columns",
            '{"q": "query"}',
            "--eval_on_start",
            "--max_steps",
            "-1",
        ],
    )
    assert config.optimization.learning_rate == 2e-4
    assert config.data.val_dataset == ["a", "b"]
    assert config.data.columns == {"q": "query"}
    assert config.training.eval_on_start is True
    assert config.max_steps == -1
    assert config.source("learning_rate") == "flag"
    assert config.source("seed") == "default"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--add_version", "false"], False),
        (["--add_version"], True),
        (["--add_version=False"], False),
        (["--no_add_version"], False),
        (["--no-add-version"], False),
    ],
)
def test_booleans(words: list[str], expected: bool) -> None:
    assert load_config(SftConfig, [*MINIMAL, *words]).saving.add_version is expected


def test_every_problem_is_reported_at_once() -> None:
    found = problems(
        "--model", "m", "--tuner_type", "full", "--datset", "x", "--truncation_strategy", "splitt", "--adam_beta2", "7", "--columns", "{a"
    )
    assert "did you mean --dataset" in found["--datset"]
    assert "did you mean split?" in found["--truncation_strategy"]
    assert "less than 1" in found["--adam_beta2"]
    assert "not JSON" in found["--columns"]


@pytest.mark.parametrize(
    ("words", "where", "part"),
    [
        (["--lora_rnk", "4"], "--lora_rnk", "--lora_rank"),
        (["--seed", "1", "2"], "--seed", "takes one value, got 2"),
        (["--seed"], "--seed", "got none"),
        (["--bf16", "maybe"], "--bf16", "allowed: true, false"),
        (["--learning_rate", "-1"], "--learning_rate", "greater than 0"),
        (["--print_config", "xml"], "--print_config", "allowed: yaml, json"),
        (["--tuner_type", "lorra"], "--tuner_type", "no tuner 'lorra'"),
        (["--hub_token"], "--hub_token", "takes one value"),
    ],
)
def test_bad_words(words: list[str], where: str, part: str) -> None:
    pytest.importorskip("swift_tuners")
    base = [word for word in MINIMAL if word not in ("--tuner_type", "full")]
    assert part in problems(*base, *words)[where]


def test_a_word_that_is_no_flag_comes_first_as_a_config_file() -> None:
    assert "neither a flag nor a config file" in problems("run", *MINIMAL)["'run'"]


def test_secrets_are_masked_wherever_a_config_is_shown() -> None:
    config = load_config(SftConfig, [*MINIMAL, "--hub_token", "hf_canary"])
    assert config.loading.hub_token == "hf_canary"
    assert "hf_canary" not in json.dumps(config.flat())
    found = problems(*MINIMAL, "--hub_token", "hf_canary", "hf_other")
    assert "hf_canary" not in " ".join(found.values())


def test_old_names_are_accepted_with_a_hint() -> None:
    invocation = understand(SftConfig, ["--model_id_or_path", "m", "--dataset", "d", "--sft_type", "full", "--lr", "3e-5"])
    assert invocation.config is not None
    assert invocation.config.loading.model == "m"
    assert invocation.config.optimization.learning_rate == 3e-5
    assert "--model_id_or_path is called --model here" in invocation.words.hints


def test_files_left_to_right_then_flags(tmp_path: Path) -> None:
    first = tmp_path / "a.yaml"
    first.write_text(
        "model: m\ndataset: d.jsonl\ntuner_type: full\nlearning_rate: 1e-4\nseed: 1\nsystem: hello\nval_dataset: null\n".replace(
            "val_dataset: null\n", ""
        )
    )
    second = tmp_path / "b.toml"
    second.write_text('seed = 2\nsystem = "from toml"\n')
    config = load_config(SftConfig, [str(first), str(second), "--seed", "3"])
    assert (config.training.seed, config.chat.system, config.data.dataset) == (3, "from toml", ["d.jsonl"])
    assert config.optimization.learning_rate == 1e-4  # YAML reads 1e-4 as a text
    assert config.source("learning_rate") == f"{first}:4"
    assert config.source("system") == str(second)


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.yaml", "model: m\nmodel: n\n", "a.yaml:2: 'model' is given twice"),
        ("a.yaml", 'model: m\nsystem: "a\nseed: 1\n', "a.yaml:"),
        ("a.yaml", "!!python/object/apply:os.system ['true']\n", "is not plain YAML"),
        ("a.yaml", "- 1\n- 2\n", "holds a list"),
        ("a.yaml", "model: m\nseeed: 3\n", "a.yaml:2: seeed"),
        ("a.json", '{"model": "m",}', "a.json:1"),
        ("a.toml", "model = m", "is not TOML"),
    ],
)
def test_bad_files_name_the_line(tmp_path: Path, name: str, text: str, part: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(SftConfig, [str(file), *MINIMAL])
    assert part in str(caught.value)


def test_absent_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=r"did you mean .*run\.yaml"):
        load_config(SftConfig, [str(tmp_path / "rum.yaml"), *MINIMAL])


def test_python_and_flags_agree() -> None:
    by_flag = load_config(SftConfig, [*MINIMAL, "--max_length", "64"])
    by_python = SftConfig(model="m", dataset="d.jsonl", tuner_type="full", max_length=64)
    assert by_flag.flat() == by_python.flat()


def test_python_reports_unknown_names() -> None:
    with pytest.raises(ConfigError, match=r"learning_rat: unknown setting.*--learning_rate"):
        SftConfig(model="m", dataset=["d"], tuner_type="full", learning_rat=1)


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ({"split_dataset_ratio": 0.1, "val_dataset": ["v"]}, "both it and --val_dataset"),
        ({"eval_strategy": "steps"}, "nothing to evaluate on"),
        ({"load_best_model_at_end": True}, "needs evaluation"),
        ({"truncation_strategy": "split"}, "no question"),
        ({"report_to": ["none", "tensorboard"]}, "none cannot stand"),
        ({"adapters": ["a"]}, "full tuning trains the base model"),
        ({"max_bad_rows": 3}, "does nothing"),
        ({"dataset": []}, "--dataset: is missing"),
        ({"model": None}, "--model: is missing"),
    ],
)
def test_combinations_that_cannot_work(extra: dict[str, object], part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SftConfig(**{"model": "m", "dataset": ["d"], "tuner_type": "full", **extra})
    assert part in str(caught.value)


def test_derived_defaults_say_why() -> None:
    config = SftConfig(model="hf::org/some-model", dataset=["d"], tuner_type="full", per_device_train_batch_size=3)
    assert config.learning_rate == 1e-5
    assert config.gradient_accumulation_steps == 6
    assert config.output_dir == "output/some-model"
    assert config.source("learning_rate").startswith("derived")


def test_pt_differs_where_it_should() -> None:
    config = load_config(PtConfig, MINIMAL)
    assert (config.chat.use_chat_template, config.chat.loss_scale) == (False, "all")
    assert load_config(SftConfig, MINIMAL).chat.use_chat_template is True


def test_training_config_needs_no_model() -> None:
    config = TrainingConfig(max_steps=3, learning_rate=1e-3)
    assert config.training.max_steps == 3
    with pytest.raises(ConfigError, match="model: unknown setting"):
        TrainingConfig(model="m")


def test_printed_yaml_is_a_config_file_again(tmp_path: Path) -> None:
    from swift_core.cli.show import config_as_yaml

    config = load_config(SftConfig, [*MINIMAL, "--system", 'say: "hi" # friend', "--columns", '{"a": "query"}'])
    file = tmp_path / "again.yaml"
    file.write_text(config_as_yaml(config))
    assert load_config(SftConfig, [str(file)]).flat() == config.flat()
