"""The plan of `swift export`: actions of strangers, folders that appear whole, going on after a failure, bad input."""

import json
import textwrap

import pytest
from swift_core.cli.main import main
from swift_core.config import export as export_config
from swift_core.config.export import ExportConfig
from swift_core.errors import CheckpointError, ConfigError, ModelError
from swift_core.registry import EXPORTS
from swift_core.specs import ExportSpec
from swift_core.tasks.exporting import export, make_plan
from swift_core.testing.tiny import make_tiny_model

STRANGER = """
from pathlib import Path
from swift_core.config.actions import ActionSection
from swift_core.config.fields import option
from swift_core.errors import ModelError
from swift_core.tasks.export_context import ExportResult

class CopySection(ActionSection):
    "Copy options."
    copy_model: bool = option(False, "copy the model")
    copy_word: str = option("plain", "a word")
    @property
    def wanted(self): return self.copy_model
    @property
    def folder_name(self): return "copied"

class CountSection(ActionSection):
    "Count options."
    count_files: bool = option(False, "count the files of the model")
    @property
    def wanted(self): return self.count_files
    @property
    def folder_name(self): return "counted"

def copy(context, folder):
    log = Path(context.model).parent / "log"
    log.write_text((log.read_text() if log.exists() else "") + "copy ")
    for file in context.model_folder().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return ExportResult(method="copied", metrics={"files": 5})

def count(context, folder):
    (folder / "half-done").write_text("x")
    if (context.model_folder().parent.parent / "broken").exists():
        raise ModelError("the disk is on fire", fix="put it out")
    (folder / "count.txt").write_text(str(len(list(context.model_folder().iterdir()))))
    return ExportResult(method="counted", lines=["counted them all"])
"""


@pytest.fixture
def kind(tmp_path, monkeypatch):
    """The config class with two actions that a stranger registered."""
    name = f"stranger_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(STRANGER))
    monkeypatch.syspath_prepend(tmp_path)
    EXPORTS.names()
    monkeypatch.setattr(EXPORTS, "_specs", dict(EXPORTS._specs))
    for action, section, order, produces in (("copy", "CopySection", 5, "model"), ("count", "CountSection", 50, "files")):
        spec = ExportSpec(
            name=action, summary=action, target=f"{name}:{action}", options=f"{name}:{section}", order=order, produces=produces
        )
        EXPORTS.register(spec)
    return export_config._assembled()


def settings(tmp_path, **more):
    model = tmp_path / "model"
    if not model.exists():
        make_tiny_model(model, layers=1)
    return {"model": str(model), "output_dir": str(tmp_path / "out"), "copy_model": True, "count_files": True, **more}


def test_actions_of_strangers_bring_flags_and_run_in_their_order(kind, tmp_path, capsys):
    context = export(kind(**settings(tmp_path)))
    assert list(context.folders) == ["copy", "count"]
    assert (tmp_path / "out" / "copied" / "config.json").is_file()
    # The second action worked on what the first wrote.
    assert int((tmp_path / "out" / "counted" / "count.txt").read_text()) > len(list((tmp_path / "model").iterdir()))
    record = json.loads((tmp_path / "out" / "copied" / "export.json").read_text())
    assert (record["action"], record["metrics"]) == ("copy", {"files": 5})
    card = (tmp_path / "out" / "copied" / "README.md").read_text()
    assert "- copied" in card and "| files | 5 |" in card and str(tmp_path) not in card
    shown = capsys.readouterr().err
    assert "[1/2] copy" in shown and "counted them all" in shown


def test_a_failure_leaves_finished_folders_and_the_same_command_goes_on(kind, tmp_path, capsys):
    (tmp_path / "broken").touch()
    with pytest.raises(ModelError, match="on fire"):
        export(kind(**settings(tmp_path, output_dir=str(tmp_path / "out"))))
    assert "finished so far: copy" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["copied"]
    (tmp_path / "broken").unlink()
    with pytest.raises(CheckpointError, match=r"other settings: --copy_word"):
        export(kind(**settings(tmp_path, copy_word="other")))
    export(kind(**settings(tmp_path)))
    assert "done before" in capsys.readouterr().err
    assert (tmp_path / "log").read_text() == "copy "
    assert not list(tmp_path.glob(".*export.json"))


def test_a_damaged_folder_is_written_again(kind, tmp_path):
    (tmp_path / "broken").touch()
    with pytest.raises(ModelError):
        export(kind(**settings(tmp_path)))
    (tmp_path / "broken").unlink()
    (tmp_path / "out" / "copied" / "config.json").write_text("{}")
    export(kind(**settings(tmp_path)))
    assert (tmp_path / "log").read_text() == "copy copy "


def test_results_that_exist_are_replaced_only_when_told(kind, tmp_path):
    export(kind(**settings(tmp_path)))
    with pytest.raises(CheckpointError, match="--exist_ok"):
        export(kind(**settings(tmp_path)))
    export(kind(**settings(tmp_path, exist_ok=True)))
    assert (tmp_path / "log").read_text() == "copy copy "


def test_one_result_goes_to_the_folder_itself_and_has_a_default_place(kind, tmp_path):
    plan = make_plan(kind(**settings(tmp_path, count_files=False)))
    assert plan.folders == {"copy": tmp_path / "out"}
    beside = make_plan(kind(**settings(tmp_path, output_dir=None)))
    assert beside.folders == {"copy": tmp_path / "model-export" / "copied", "count": tmp_path / "model-export" / "counted"}
    away = make_plan(kind(model="hf::org/name", copy_model=True))
    assert str(away.root) == "name-copied"


def test_an_action_that_cannot_be_used_leaves_the_others_alone(kind, tmp_path, monkeypatch):
    from swift_core import plugins
    from swift_core.plugins import broken_plugins

    monkeypatch.setattr(plugins, "_broken", {})
    EXPORTS.register(ExportSpec(name="absent", summary="", target="no_such:thing", options="no_such:Options", order=1))
    EXPORTS.register(ExportSpec(name="thief", summary="", target="a:b", options="swift_core.config.actions:PushSection", order=99))
    assert export_config._assembled()(**settings(tmp_path)).wanted_actions() == ["copy", "count"]
    assert any("swift.exports = absent" in name for name in broken_plugins())
    assert any("have an owner already" in why for why in broken_plugins().values())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "m"}, "nothing to do"),
        ({"push_to_hub": True, "model": "m"}, "--hub_model_id: is missing"),
        ({"push_to_hub": True, "model": "m", "hub_model_id": "no name"}, "no repository name"),
        ({"push_to_hub": True, "hub_model_id": "a/b"}, "--model: is missing"),
        ({"push_to_hub": True, "hub_model_id": "a/b", "model": "m", "offline": True}, "needs a connection"),
        ({"hub_model_id": "a/b", "model": "m"}, "only acts on an upload"),
        ({"to_hf": True, "model": "m"}, "no Megatron checkpoints"),
        ({"push_to_hub": True, "hub_model_id": "a/b", "model": "m", "dataset": ["d"]}, "no action that is asked for reads rows"),
        ({"to_cached_dataset": True, "push_to_hub": True, "hub_model_id": "a/b", "model": "m", "dataset": ["d"]}, "goes alone"),
    ],
)
def test_bad_settings_are_refused_with_a_fix(given, words):
    with pytest.raises(ConfigError, match=words) as error:
        ExportConfig(**given)
    assert all(problem.fix for problem in error.value.problems)


def test_flags_of_absent_packages_name_the_package(monkeypatch, capsys):
    monkeypatch.setattr(export_config._ExportConfig, "elsewhere", {"quant_colour": "swift-infer[quant]"})
    assert main(["export", "--model", "m", "--quant_colour", "red"]) == 2
    assert "pip install 'swift-infer[quant]'" in capsys.readouterr().err


def test_dry_run_shows_the_plan_and_writes_nothing(tmp_path, capsys):
    assert main(["export", "--model", str(tmp_path / "m"), "--push_to_hub", "true", "--hub_model_id", "a/b", "--dry_run"]) == 0
    assert capsys.readouterr().out.startswith("1. push: upload")
    assert list(tmp_path.iterdir()) == []
