"""The web page in a real Chromium: fill in the form, start a training, watch it end, reload, restart the server.

Needs `selenium` and Debian's `chromium` and `chromium-driver`; `tools/install_browser.sh` installs the two programs.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from swift_core.testing.tiny import make_tiny_model

pytestmark = pytest.mark.e2e

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,1500",
)
SECONDS = 120


@contextmanager
def _server(workspace: Path, port: int, lang: str) -> Iterator[str]:
    words = ["web-ui", "--server_port", str(port), "--workspace", str(workspace), "--lang", lang]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "swift_core", *words], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("swift web-ui: http://127.0.0.1:"), line
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    browser, service = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser and service, "chromium and chromium-driver are not installed; tools/install_browser.sh installs them"
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(service))
    yield started
    started.quit()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(driver: Any, condition: Callable[[], Any], what: str) -> Any:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    waiter = WebDriverWait(driver, SECONDS, ignored_exceptions=[StaleElementReferenceException])
    return waiter.until(lambda _: condition(), what)


def _text(driver: Any, selector: str) -> str:
    return "\n".join(element.text for element in driver.find_elements("css selector", selector))


def _enter(driver: Any, field: str, value: str) -> None:
    selector = f"#{field} textarea, #{field} input"
    box = _wait(driver, lambda: next(iter(driver.find_elements("css selector", selector)), None), f"no field {field}")
    box.clear()
    box.send_keys(value)


def _hosts(driver: Any) -> set[str]:
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return {url.split("/")[2] for url in urls if url.startswith(("http", "ws"))}


def test_a_person_trains_from_the_page_and_the_job_is_still_there_later(driver, tmp_path):
    model = tmp_path / "model"
    make_tiny_model(model)
    rows = tmp_path / "rows.jsonl"
    row = {"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am swift."}]}
    rows.write_text((json.dumps(row) + "\n") * 8, encoding="utf-8")
    workspace, port = tmp_path / "workspace", _free_port()

    with _server(workspace, port, "en") as url:
        driver.get(url)
        _wait(driver, lambda: "--model is missing" in _text(driver, "#problems"), "the form does not say what is missing")
        driver.save_screenshot(str(tmp_path / "train.png"))
        driver.find_element("id", "start").click()
        _wait(driver, lambda: "was not started" in _text(driver, "body"), "an incomplete form is not refused")

        _enter(driver, "field_model", str(model))
        _enter(driver, "field_dataset", str(rows))
        _enter(driver, "field_max_steps", "3")
        _enter(driver, "field_logging_steps", "1")
        _enter(driver, "field_gradient_accumulation_steps", "1")
        _enter(driver, "field_max_length", "64")
        _wait(driver, lambda: "max_length: 64" in _text(driver, "#preview_yaml"), "the YAML does not follow the form")
        assert f"model: {model}" in _text(driver, "#preview_yaml")
        assert "--max_steps 3" in _text(driver, "#preview_command")
        _wait(driver, lambda: "Ready to start" in _text(driver, "#problems"), "a complete form is not ready")
        _enter(driver, "field_lora_rank", "many")
        _wait(driver, lambda: "'many' is refused" in _text(driver, "#problems"), "a bad value is not named")
        _enter(driver, "field_lora_rank", "4")
        _wait(driver, lambda: "lora_rank: 4" in _text(driver, "#preview_yaml"), "a mended value is not taken")
        _enter(driver, "job_name", "first <b>try</b>")
        driver.save_screenshot(str(tmp_path / "filled.png"))

        driver.find_element("id", "start").click()
        _wait(driver, lambda: "first <b>try</b>" in _text(driver, "table.jobs"), "the job is not listed")
        _wait(driver, lambda: _text(driver, "table.jobs .status") in ("done", "failed", "lost"), "the job does not end")
        _wait(driver, lambda: driver.find_elements("css selector", "#curves polyline"), "there is no curve")
        driver.save_screenshot(str(tmp_path / "jobs.png"))
        log = driver.find_element("css selector", "#log textarea").get_attribute("value")
        assert _text(driver, "table.jobs .status") == "done", log
        assert "step 3/3" in log

        driver.refresh()
        _wait(driver, lambda: driver.find_elements("css selector", "button[role=tab]"), "the page does not come back")
        driver.find_elements("css selector", "button[role=tab]")[1].click()
        _wait(driver, lambda: _text(driver, "table.jobs .status") == "done", "a reload forgets the job")
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert _hosts(driver) == {f"127.0.0.1:{port}"}
        _assert_refused(url, {"Origin": "https://evil.example"})

    run = workspace / "jobs" / "0001" / "run"
    assert len((run / "logging.jsonl").read_text(encoding="utf-8").splitlines()) >= 3
    with _server(workspace, port, "zh") as url:
        driver.get(url)
        _wait(driver, lambda: "开始训练" in _text(driver, "#start"), "the page is not in Chinese")
        driver.save_screenshot(str(tmp_path / "zh.png"))
        driver.find_elements("css selector", "button[role=tab]")[1].click()
        _wait(driver, lambda: "完成" in _text(driver, "table.jobs .status"), "a restart of the server forgets the job")
        driver.save_screenshot(str(tmp_path / "zh_jobs.png"))


def _assert_refused(url: str, headers: dict[str, str]) -> None:
    """A page of another site must not be allowed to read answers of this one."""
    request = urllib.request.Request(url + "config", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            allowed = reply.headers.get("Access-Control-Allow-Origin")
    except urllib.error.HTTPError as error:
        allowed = error.headers.get("Access-Control-Allow-Origin")
    assert allowed is None
