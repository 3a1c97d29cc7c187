"""`swift infer` and `swift deploy` as a person runs them, on a LoRA checkpoint of a tiny model."""

import json
import signal
import subprocess
import sys

import openai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from swift_core.testing.tiny import make_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

QUESTION = [{"role": "user", "content": "Who are you?"}]
SYSTEM = "Be brief."


def swift(*words, **options):
    return subprocess.run([sys.executable, "-m", "swift_core", *words], capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint whose adapter changes the answers, and the answer it gives to QUESTION."""
    root = tmp_path_factory.mktemp("infer")
    base = make_tiny_model(root / "base")
    folder = root / "run" / "checkpoint-3"
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder)
    args = {"model": str(base), "tuner_type": "lora", "system": SYSTEM, "torch_dtype": "float32"}
    (folder / "args.json").write_text(json.dumps(args))
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer.apply_chat_template([{"role": "system", "content": SYSTEM}, *QUESTION], add_generation_prompt=True, return_tensors="pt")
    ids = ids["input_ids"]
    found = model.eval().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    return folder, tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).rstrip("\ufffd")


def test_chat_over_a_pipe_answers_with_the_adapter(checkpoint):
    folder, answer = checkpoint
    found = swift("infer", "--adapters", str(folder), "--max_new_tokens", "8", "--temperature", "0", "--use_cpu", input="Who are you?\n")
    assert found.returncode == 0, found.stderr
    assert found.stdout == answer + "\n"
    assert "(from args.json)" in found.stderr and f"--system {SYSTEM}" in found.stderr


def test_batch_writes_into_the_checkpoint(checkpoint, tmp_path):
    folder, answer = checkpoint
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": [*QUESTION, {"role": "assistant", "content": f"a{i}"}]}) + "\n" for i in range(3)))
    words = ["--model", str(folder), "--val_dataset", str(rows), "--max_new_tokens", "8", "--temperature", "0", "--use_cpu", "true"]
    found = swift("infer", *words)
    assert found.returncode == 0, found.stderr
    (file,) = (folder / "infer_result").glob("*.jsonl")
    results = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["response"], row["labels"]) for row in results] == [(answer, f"a{i}") for i in range(3)]


def test_deploy_serves_the_adapter_and_drains(checkpoint):
    folder, answer = checkpoint
    words = ["deploy", "--adapters", str(folder), "--port", "0", "--api_key", "k", "--served_model_name", "mine", "--use_cpu"]
    process = subprocess.Popen([sys.executable, "-m", "swift_core", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        ready = next(line for line in process.stderr if line.startswith("serving "))
        url = ready.split(" at ")[1].split()[0]
        client = openai.OpenAI(base_url=url, api_key="k", max_retries=0, timeout=120)
        pieces, reason = [], None
        for number, chunk in enumerate(
            client.chat.completions.create(model="mine", messages=QUESTION, max_tokens=8, temperature=0, stream=True)
        ):
            if number == 1:
                process.send_signal(signal.SIGTERM)
            pieces.append(chunk.choices[0].delta.content or "")
            reason = chunk.choices[0].finish_reason or reason
        assert ("".join(pieces), reason) == (answer, "length")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["infer", "--model_id_or_path", "output/checkpoint-xxx"], 1, "no checkpoint folder"),
        (["deploy", "--model", "m", "--host", "0.0.0.0"], 2, "--api_key"),
    ],
)
def test_what_cannot_work_is_one_line_with_a_fix(words, code, said):
    found = swift(*words)
    (line,) = [line for line in found.stderr.splitlines() if line.startswith("error")]
    assert (found.returncode, said in line, "(fix: " in line) == (code, True, True)


@pytest.mark.parametrize("command", ["infer", "deploy"])
def test_quick_start_lines_parse(command):
    found = swift(command, "--model_id_or_path", "output/checkpoint-xxx", "--print_config", "json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["model"] == "output/checkpoint-xxx"
