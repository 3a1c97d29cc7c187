"""Names, duplicates, plugins from files and from broken strangers."""

from __future__ import annotations

import pickle
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from swift_core import plugins
from swift_core.errors import ConfigError, DataError, MissingDependencyError, PluginError, Problem, RegistryError
from swift_core.registry import Registry, import_target, nearest
from swift_core.specs import CommandSpec, TunerSpec


def spec(name: str, **more: object) -> TunerSpec:
    return TunerSpec(name=name, summary="s", target="json:loads", **more)  # type: ignore[arg-type]


def test_a_name_belongs_to_one() -> None:
    registry = Registry("things", TunerSpec)
    registry.register(spec("a"), source="first")
    with pytest.raises(RegistryError, match="by first and by second"):
        registry.register(spec("a"), source="second")
    registry.register(spec("a"), source="third", override=True)
    assert registry.get("a").source == "third"


def test_unknown_names_get_the_nearest_or_the_package() -> None:
    registry = Registry("things", TunerSpec, packages={"vllm": "swift-infer[vllm]"})
    registry.register(spec("qlora"))
    with pytest.raises(RegistryError, match=r"did you mean qlora\?"):
        registry.get("qloar")
    with pytest.raises(RegistryError, match=r"pip install 'swift-infer\[vllm\]'"):
        registry.get("vllm")


def test_aliases_and_kinds() -> None:
    registry = Registry("commands2", CommandSpec)
    registry.register(CommandSpec(name="one", summary="s", target="json:dumps", aliases=("uno",)))
    assert registry.get("uno").name == "one"
    assert registry.load("uno")({"a": 1}) == '{"a": 1}'
    with pytest.raises(RegistryError, match="holds CommandSpec"):
        registry.register(spec("x"))  # type: ignore[arg-type]


def test_targets_are_imported_when_used_and_named_when_absent() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'swift-infer\[vllm\]'"):
        import_target("no_such_module_x:y", needed_for="engine 'vllm'", install="swift-infer[vllm]")
    with pytest.raises(PluginError, match="has no attribute"):
        import_target("json:nothing", needed_for="test")
    with pytest.raises(PluginError, match="module:attribute"):
        import_target("json", needed_for="test")


def test_requirements_are_checked_before_importing() -> None:
    registry = Registry("engines2", TunerSpec)
    registry.register(spec("e", requires=("no_such_library_x",), install="package[extra]"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'package\[extra\]'"):
        registry.load("e")


def test_plugin_files_have_module_names_of_their_own(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "plugin.py").write_text(f"VALUE = {value}\n")
    import sys

    names = plugins.load_plugin_files([str(tmp_path / "a" / "plugin.py"), str(tmp_path / "b" / "plugin.py")])
    assert [sys.modules[name].VALUE for name in names] == [1, 2]


@pytest.mark.parametrize(("text", "part"), [("raise ValueError('boom')", "raised ValueError: boom"), ("x ===", "SyntaxError")])
def test_broken_plugin_files_are_named(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "p.py"
    file.write_text(text)
    with pytest.raises(PluginError, match=part):
        plugins.load_plugin_files([str(file)])
    with pytest.raises(PluginError, match="does not exist"):
        plugins.load_plugin_files([str(tmp_path / "none.py")])


def test_a_broken_stranger_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("stranger", "no_such_module_x:SPECS", "swift.things3")
    monkeypatch.setattr(plugins, "_entry_points", lambda: {"swift.things3": [point]})
    monkeypatch.setattr(plugins, "_broken", {})
    assert list(plugins.entry_specs("things3")) == []
    assert any("no_such_module_x" in why for why in plugins.broken_plugins().values())


def test_nearest_ignores_case_and_dashes() -> None:
    assert nearest("Merge_Lora", ["merge-lora", "sft"]) == ["merge-lora"]
    assert nearest("zzz", ["merge-lora"]) == []


@pytest.mark.parametrize(
    "error",
    [
        DataError("bad", location="f:3", fix="mend"),
        ConfigError([Problem("--a", "b", "c"), Problem("--d", "e")]),
        MissingDependencyError("x", needed_for="y", install="z"),
    ],
)
def test_errors_survive_the_way_between_processes(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__
