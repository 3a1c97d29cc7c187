"""`swift sft` as users run it: processes that die, two ranks, checkpoints that other commands read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from swift_core.testing.tiny import make_tiny_model
from swift_core.train.report import read_log

SETTINGS = [
    "--dataset", "self-cognition#40", "--max_steps", "6", "--save_steps", "2", "--per_device_train_batch_size", "2",
    "--gradient_accumulation_steps", "2", "--learning_rate", "1e-2", "--logging_steps", "1", "--add_version", "false", "--use_cpu",
    "--report_to", "none",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def environment(**more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("NPROC_PER_NODE", "LOCAL_RANK", "RANK", "WORLD_SIZE")}
    return {**inherited, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


def swift(*words: str | Path, expect: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swift_core", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**env), timeout=300, check=False)
    assert done.returncode == expect, f"{done.returncode}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs."""
    run_dir = tmp_path_factory.mktemp("whole")
    swift("sft", "--model", model, *SETTINGS, "--output_dir", run_dir)
    return run_dir


DYING_PLUGIN = """
import os, signal
from swift_core.train import checkpoint

seal = checkpoint.seal

def dying(folder):
    if folder.name.endswith("checkpoint-4"):
        {damage}
        os.kill(os.getpid(), signal.SIGKILL)
    seal(folder)

checkpoint.seal = dying
"""


@pytest.mark.parametrize("damage", ["pass", "seal(folder)"])
def test_killed_while_saving_and_resumed_equals_undisturbed(model: Path, whole: Path, tmp_path: Path, damage: str) -> None:
    plugin = tmp_path / "dying.py"
    plugin.write_text(DYING_PLUGIN.format(damage=damage))
    run_dir = tmp_path / "run"
    swift("sft", "--model", model, *SETTINGS, "--output_dir", run_dir, "--external_plugins", plugin, expect=-signal.SIGKILL)
    assert sorted(path.name for path in run_dir.glob("checkpoint-*")) == ["checkpoint-2"]
    swift("sft", "--resume_from_checkpoint", run_dir, "--external_plugins", "[]")
    assert same(run_dir / "checkpoint-6", whole / "checkpoint-6")
    assert [line["step"] for line in read_log(run_dir)] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in read_log(run_dir)] == [line["loss"] for line in read_log(whole)]


def test_killed_between_steps_and_resumed_equals_undisturbed(model: Path, whole: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "slow.py"
    plugin.write_text(
        "import time\nfrom transformers import TrainerCallback\nclass Slow(TrainerCallback):\n"
        "    def on_step_begin(self, *args, **context):\n        time.sleep(1)\n"
        "from swift_core.registry import CALLBACKS\nfrom swift_core.specs import CallbackSpec\n"
        "import sys\nsys.modules['slow_callback'] = sys.modules[__name__]\n"
        "CALLBACKS.register(CallbackSpec(name='slow', summary='waits', target='slow_callback:Slow'))\n"
    )
    run_dir = tmp_path / "run"
    words = [
        "sft",
        "--model",
        str(model),
        *SETTINGS,
        "--output_dir",
        str(run_dir),
        "--external_plugins",
        str(plugin),
        "--callbacks",
        "slow",
    ]
    process = subprocess.Popen([sys.executable, "-m", "swift_core", *words], env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 3/"):
            process.kill()
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL
    swift("sft", "--resume_from_checkpoint", run_dir)
    assert same(run_dir / "checkpoint-6", whole / "checkpoint-6")


@pytest.mark.parametrize("launcher", ["NPROC_PER_NODE", "torchrun"])
def test_two_ranks_train_as_one(model: Path, tmp_path: Path, launcher: str) -> None:
    """Two processes of 2 x 1 give the losses of one process of 2 x 2, and a checkpoint that loads."""
    # In float32: half precision rounds other batches differently.
    words = [
        "sft",
        "--model",
        str(model),
        *SETTINGS,
        "--torch_dtype",
        "float32",
        "--lora_dropout",
        "0",
        "--val_dataset",
        "self-cognition#5",
    ]
    swift(*words, "--output_dir", tmp_path / "one", "--eval_steps", "3")
    two = [*words, "--output_dir", str(tmp_path / "two"), "--gradient_accumulation_steps", "1", "--eval_steps", "3"]
    if launcher == "NPROC_PER_NODE":
        swift(*two, NPROC_PER_NODE="2")
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "swift_core", *two]
        subprocess.run(command, env=environment(), check=True, capture_output=True, timeout=300)
    one, other = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    for name in ("loss", "eval_loss", "eval_token_accuracy"):
        assert [line[name] for line in other if name in line] == pytest.approx([line[name] for line in one if name in line], abs=2e-4)
    left, right = weights(tmp_path / "one" / "checkpoint-6"), weights(tmp_path / "two" / "checkpoint-6")
    assert max(float((left[name] - right[name]).abs().max()) for name in left) < 2e-3
    assert (tmp_path / "two" / "checkpoint-6" / "rng_state_1.pth").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_of_two_ranks_saves(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    words = ["sft", "--model", str(model), *SETTINGS, "--max_steps", "400", "--save_steps", "1000", "--output_dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "swift_core", *words], env=environment(NPROC_PER_NODE="2"), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 2/"):
            process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number, "".join(lines[-30:])
    saved = list(tmp_path.glob("checkpoint-*/manifest.json"))
    assert len(saved) == 1, "".join(lines[-30:])


def test_a_checkpoint_serves_the_other_commands(model: Path, whole: Path, tmp_path: Path) -> None:
    args = json.loads((whole / "checkpoint-6" / "args.json").read_text())
    assert args["model"] == str(model) and args["lora_rank"] == 8 and args["command"] == "sft"
    merged = tmp_path / "merged"
    done = swift("merge-lora", "--adapters", whole / "checkpoint-6", "--output_dir", merged)
    assert "difference" in done.stdout + done.stderr
    assert (merged / "model.safetensors").is_file()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "who?", "response": "me"}\n' * 3)
    results = []
    for where in (["--adapters", str(whole / "checkpoint-6")], ["--model", str(merged)]):
        out = tmp_path / f"out{len(results)}.jsonl"
        swift("infer", *where, "--val_dataset", rows, "--result_path", out, "--temperature", "0", "--max_new_tokens", "8")
        results.append([json.loads(line)["response"] for line in out.read_text().splitlines()])
    assert len(results[0]) == 3 and results[0] == results[1]


def test_bad_rows_are_kept_aside(model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    good = '{"query": "q", "response": "r"}\n'
    rows.write_text(good * 5 + '{"query": "q", "respo\n' + good * 5)
    words = ["sft", "--model", model, "--dataset", rows, *SETTINGS[2:], "--output_dir"]
    done = swift(*words, tmp_path / "a", expect=1)
    assert "rows.jsonl:6: broken JSON" in done.stderr and "--on_bad_row skip" in done.stderr
    assert done.stderr.count("\nerror: ") + done.stderr.startswith("error: ") == 1
    assert "Traceback" not in done.stderr
    swift(*words, tmp_path / "b", "--on_bad_row", "quarantine")
    kept = [json.loads(line) for line in (tmp_path / "b" / "rejected.jsonl").read_text().splitlines()]
    assert kept[0]["origin"].endswith("rows.jsonl:6")


@pytest.mark.parametrize(
    ("words", "code", "parts"),
    [
        (["--model", "no/such/folder/x", "--dataset", "self-cognition"], 1, ["no/such/folder/x", "fix:"]),
        (["--model", "MODEL", "--dataset", "nothing.jsonl"], 1, ["nothing.jsonl", "fix:"]),
        (["--model", "MODEL", "--dataset", "self-cognition", "--lora_rnk", "4"], 2, ["--lora_rnk", "did you mean --lora_rank"]),
        (["--model", "MODEL", "--dataset", "MASKED"], 1, ["masked", "fix:"]),
        (["--model", "MODEL", "--dataset", "self-cognition", "--max_length", "4"], 1, ["longer than --max_length 4", "fix:"]),
        (["--model", "MODEL", "--dataset", "self-cognition", "--target_modules", "q_prj"], 1, ["q_proj", "fix:"]),
    ],
)
def test_bad_input_is_one_line_with_the_fix(model: Path, tmp_path: Path, words: list[str], code: int, parts: list[str]) -> None:
    masked = tmp_path / "masked.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": False}]
    masked.write_text(json.dumps({"messages": turns}) + "\n")
    filled = [str(masked) if word == "MASKED" else str(model) if word == "MODEL" else word for word in words]
    done = swift("sft", *filled, "--output_dir", tmp_path / "out", expect=code)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(part in errors[0] for part in parts), done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_trains_nothing(model: Path, tmp_path: Path) -> None:
    done = swift("sft", "--model", model, "--dataset", "self-cognition", "--dry_run", "--output_dir", tmp_path / "out")
    assert "nothing was trained" in done.stdout and "GiB" in done.stdout and "steps an epoch" in done.stdout
    assert not (tmp_path / "out").exists()
