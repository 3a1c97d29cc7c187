"""The rules of the house that no linter knows."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from swift_core.errors import MissingDependencyError, PluginError
from swift_core.plugins import broken_plugins
from swift_core.registry import REGISTRIES, import_target

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = sorted(path.parent for path in (ROOT / "packages").glob("*/pyproject.toml"))
SOURCES = sorted((ROOT / "packages").glob("*/src/**/*.py"))

# Files over 500 lines that are still one idea, with the reason.
LONG_FILES: dict[str, str] = {}
# Calls of the list below that are right where they are, by file, with the reason.
ALLOWED_CALLS: dict[tuple[str, str], str] = {}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def project(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_six_packages_are_there():
    assert [package.name for package in PACKAGES] == ["swift-core", "swift-eval", "swift-infer", "swift-rlhf", "swift-tuners", "swift-ui"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_package_has_what_an_index_and_a_type_checker_need(package: Path):
    module = package / "src" / package.name.replace("-", "_")
    assert project(package)["name"] == package.name
    assert (module / "py.typed").is_file()
    assert (module / "__init__.py").read_text(encoding="utf-8").startswith('"""')
    readme = (package / "README.md").read_text(encoding="utf-8")
    assert f"pip install {package.name}" in readme.replace("'", ""), "the README says how to install the package"
    assert list((package / "tests").glob("test_*.py")), "the package has tests of its own"


def test_all_versions_and_pins_agree():
    version = project(ROOT)["version"]
    assert {package.name: project(package)["version"] for package in PACKAGES} == {package.name: version for package in PACKAGES}
    pins = {ROOT.name: ("==", project(ROOT)), **{package.name: ("~=", project(package)) for package in PACKAGES}}
    for where, (operator, table) in pins.items():
        for requirement in [*table["dependencies"], *(line for extra in table.get("optional-dependencies", {}).values() for line in extra)]:
            if requirement.startswith("swift-"):
                assert re.fullmatch(rf"swift-[a-z]+(\[[a-z,-]+\])?{operator}{re.escape(version)}", requirement), f"{where}: {requirement}"


def test_meta_package_holds_every_package():
    named = {re.match(r"[a-z-]+", requirement)[0] for requirement in project(ROOT)["dependencies"]}
    assert named == {package.name for package in PACKAGES}


def test_installed_entry_points_are_those_of_the_project_files():
    declared = {
        (group, name, target)
        for package in PACKAGES
        for group, entries in project(package).get("entry-points", {}).items()
        for name, target in entries.items()
    }
    installed = {
        (point.group, point.name, point.value)
        for package in PACKAGES
        for point in importlib.metadata.distribution(package.name).entry_points
        if point.group.startswith("swift.")
    }
    assert installed == declared, "entry points changed: run `make setup`"


def test_every_entry_point_loads():
    for registry in REGISTRIES.values():
        registry.names()
    assert broken_plugins() == {}


@pytest.mark.parametrize("name", sorted(REGISTRIES))
def test_registered_targets_exist(name: str):
    targets = {
        target: spec
        for spec in REGISTRIES[name]
        for target in (spec.target, getattr(spec, "config", None), getattr(spec, "options", None), getattr(spec, "dry_run", None))
        if target is not None
    }
    wrong = []
    for target, spec in targets.items():
        try:
            found = import_target(target, needed_for=spec.name, install=spec.install)
        except MissingDependencyError as error:
            # An engine lives in an environment of its own; the module that wraps it must be there all the same.
            if str(error).count("'swift_"):
                wrong.append(f"{spec.name}: {error}")
        except PluginError as error:
            wrong.append(str(error))
        else:
            if not callable(found) and name != "agent_templates":  # an agent format is a value
                wrong.append(f"{spec.name}: {target} is a {type(found).__name__}")
    assert wrong == []


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_source_file_is_one_idea(file: Path):
    assert not VAGUE_NAMES & {file.stem, *file.relative_to(ROOT).parts}, "name the file after what it holds"
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= 500 or relative(file) in LONG_FILES, f"{lines} lines: split it, or give the reason in LONG_FILES"


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangerous(call: ast.Call) -> str | None:
    """Name what is dangerous about a call: running text as code or as a shell line, or unpickling what someone else wrote."""
    name = dotted(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    arguments = [ast.unparse(argument) for argument in call.args] + list(keywords.values())
    if name in ("eval", "exec", "os.system", "os.popen", "builtins.eval", "builtins.exec"):
        return name
    if keywords.get("shell", "False") != "False":
        return "shell=True"
    if re.fullmatch(r"(pickle|cPickle|dill|cloudpickle|joblib|marshal|shelve)\.(load|loads|open|Unpickler)", name):
        return name
    if name in ("yaml.load", "yaml.load_all") and not any("SafeLoader" in argument for argument in arguments):
        return name
    if name in ("yaml.unsafe_load", "yaml.full_load"):
        return name
    if name == "torch.load" and keywords.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    return None


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_source_runs_no_text_and_unpickles_nothing(file: Path):
    calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    found = [f"{relative(file)}:{call.lineno}: {what}" for call in calls if (what := dangerous(call)) is not None]
    allowed = {what for where, what in ALLOWED_CALLS if where == relative(file)}
    assert [line for line in found if line.rpartition(": ")[2] not in allowed] == []


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("eval(text)", "eval"),
        ("subprocess.run(line, shell=True)", "shell=True"),
        ("subprocess.run(line, shell=flag)", "shell=True"),
        ("subprocess.run(words, shell=False)", None),
        ("pickle.loads(data)", "pickle.loads"),
        ("yaml.load(text)", "yaml.load"),
        ("yaml.load(text, Loader=yaml.SafeLoader)", None),
        ("yaml.safe_load(text)", None),
        ("torch.load(file)", "torch.load without weights_only=True"),
        ("torch.load(file, weights_only=False)", "torch.load without weights_only=True"),
        ("torch.load(file, weights_only=True)", None),
        ("model.eval()", None),
        ("re.compile(text)", None),
    ],
)
def test_dangerous_calls_are_recognised(code: str, what: str | None):
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert dangerous(call) == what


def test_allow_lists_name_only_what_is_there():
    assert [name for name in [*LONG_FILES, *(where for where, _ in ALLOWED_CALLS)] if not (ROOT / name).is_file()] == []


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_place_on_one_machine():
    places = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/[\w.-]+")
    found = []
    for file in tracked_files():
        if file.suffix in (".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".json", ".cfg", "") and file.name != "uv.lock":
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if places.search(line):
                    found.append(f"{relative(file)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_no_large_or_binary_file_is_tracked():
    large = [relative(file) for file in tracked_files() if file.stat().st_size > 500_000 and file.name != "uv.lock"]
    assert large == []


def test_lock_takes_everything_from_one_index():
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    kinds = {(next(iter(package["source"])), package["source"].get("registry", "")) for package in lock["package"]}
    assert {kind for kind, _ in kinds} <= {"registry", "editable", "virtual"}
    assert len({url for kind, url in kinds if kind == "registry"}) == 1
