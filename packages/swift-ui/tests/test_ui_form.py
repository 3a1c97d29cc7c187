"""The form: complete against the schema, and what a person enters becomes what the command line would read."""

from __future__ import annotations

import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
import swift_ui
import yaml
from swift_core.config.command import tuner_flags
from swift_core.config.load import load_config
from swift_core.config.training import SftConfig
from swift_core.errors import ConfigError
from swift_ui.config import WebUiConfig
from swift_ui.form import MANAGED, RUNS_CODE, as_command, as_yaml, form_fields, masked, read_form, split_secrets
from swift_ui.i18n import LANGUAGES, Texts, catalogue

FIELDS = form_fields(SftConfig)
DEFAULTS = {field.name: field.default for field in FIELDS}


def _read(**entered):
    return read_form(SftConfig, FIELDS, {**DEFAULTS, **entered})


def test_every_setting_is_a_field_or_left_out_for_a_reason():
    shown = {field.name for field in FIELDS}
    assert len(shown) == len(FIELDS)
    assert {*SftConfig.settings(), *tuner_flags()} - shown == {*MANAGED, *RUNS_CODE}


def test_an_untouched_form_changes_nothing_and_names_what_is_missing():
    reading = _read()
    assert reading.values == {}
    assert [problem.where for problem in reading.problems] == ["--model", "--dataset"]


def test_preview_gives_the_same_config_in_yaml_and_in_a_shell(tmp_path):
    reading = _read(
        model="a model; $(touch x)",
        dataset="one file.jsonl\n\n  two.jsonl ",
        learning_rate="1e-4",
        columns='{"q": "query"}',
        bf16="false",
        use_hf=True,
        max_steps=" 7 ",
        system="-- be brief",
        lora_rank="16",
        report_to=["none"],
    )
    assert not reading.problems
    file = tmp_path / "run.yaml"
    file.write_text(as_yaml(reading.values), encoding="utf-8")
    # A real shell says which words the command line gives.
    script = "swift() { printf '%s\\0' \"$@\"; }\n" + as_command("sft", reading.values)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    words = done.stdout.split("\0")[:-1]
    assert words[0] == "sft" and "a model; $(touch x)" in words and not (tmp_path / "x").exists()
    from_file, from_flags = load_config(SftConfig, [str(file)]), load_config(SftConfig, words[1:])
    assert from_file.flat() == from_flags.flat()
    assert from_flags.flat()["dataset"] == ["one file.jsonl", "two.jsonl"]
    values = from_file.flat()
    assert (values["learning_rate"], values["max_steps"], values["bf16"], values["lora_rank"]) == (1e-4, 7, False, 16)


def test_texts_that_look_like_numbers_stay_texts():
    assert _read(model="007", dataset="12").values == {"model": "007", "dataset": ["12"]}


@pytest.mark.parametrize(
    ("entered", "where", "said"),
    [
        ({"lora_rank": "many"}, "--lora_rank", "'many' is refused"),
        ({"columns": "{"}, "--columns", "is not JSON"),
        ({"columns": "[1]"}, "--columns", "holds a list"),
        ({"max_steps": "-5"}, "--max_steps", "-5 is refused"),
        ({"eval_strategy": "steps"}, "--eval_strategy steps", "nothing to evaluate on"),
    ],
)
def test_problems_name_the_field(entered, where, said):
    reading = _read(model="m", dataset="d", **entered)
    assert [(problem.where, said in problem.what) for problem in reading.problems] == [(where, True)]


def test_options_of_another_tuner_are_left_out():
    assert "lora_rank" not in _read(model="m", dataset="d", tuner_type="full", lora_rank="16").values


def test_secrets_are_masked_and_kept_apart():
    reading = _read(model="m", dataset="d", hub_token="hf_canary")
    public, secrets = split_secrets(FIELDS, reading.values)
    assert secrets == {"hub_token": "hf_canary"} and "hub_token" not in public
    shown = masked(FIELDS, reading.values)
    assert "canary" not in as_yaml(shown) + as_command("sft", shown) and "***" in as_yaml(shown)


def test_both_languages_have_every_text_and_the_same_placeholders():
    first, second = (catalogue(lang) for lang in LANGUAGES)
    for part, texts in first.items():
        assert texts.keys() == second[part].keys()
        for key, text in texts.items():
            assert _names(text) == _names(second[part][key]), key
    same = [key for key, text in first["page"].items() if text == second["page"][key]]
    assert same == ["title"]


def _names(text: str) -> set[str | None]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_code_asks_for_no_text_that_is_absent_and_no_text_is_idle():
    code = "".join(path.read_text(encoding="utf-8") for path in Path(swift_ui.__file__).parent.rglob("*.py"))
    wanted = set(re.findall(r"""text\(\s*["']([a-z_]+)["']""", code)) | set(re.findall(r'"(stop_[a-z]+)"', code))
    known = set(catalogue("en")["page"])
    assert wanted <= known
    made = {key for key in known if key.startswith(("col_", "status_", "curve_"))}
    assert known - made <= wanted


@pytest.mark.parametrize("lang", LANGUAGES)
def test_headings_and_basic_fields_have_labels(lang):
    known = catalogue(lang)
    assert {field.group for field in FIELDS if not field.owners} <= known["group"].keys()
    assert {field.name for field in FIELDS if field.basic} <= known["field"].keys()
    assert Texts(lang).field("max_grad_norm") == "Max grad norm"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_loopback_needs_no_password(host):
    assert WebUiConfig.from_values({"server_name": host}, {}).page.server_name == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_other_addresses_are_refused_without_a_password(host):
    with pytest.raises(ConfigError, match="--auth USER:PASSWORD"):
        WebUiConfig.from_values({"server_name": host}, {})
    assert WebUiConfig.from_values({"server_name": host, "auth": "me:pw"}, {}).flat()["auth"] == "***"


@pytest.mark.parametrize("auth", ["me", "me:", ":pw", ""])
def test_half_credentials_are_refused(auth):
    with pytest.raises(ConfigError, match="USER:PASSWORD"):
        WebUiConfig.from_values({"auth": auth}, {})


def test_config_form_and_jobs_import_no_gradio():
    code = "import sys, swift_ui.specs, swift_ui.cli, swift_ui.form, swift_ui.jobs, swift_ui.chart; print({'gradio', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_yaml_of_nothing_is_empty():
    assert as_yaml({}) == "" and yaml.safe_load(as_yaml({"a": "true"})) == {"a": "true"}
