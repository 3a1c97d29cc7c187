"""Rows a second from a data file to token ids with labels: swift against ms-swift 4.6, on the same rows, tokenizer and cores.

Each side runs in a process of its own, in turns, several times; what is printed are medians. A run reads the file, makes
conversations of the rows, and encodes them with the same chat format and limit; imports and loading the tokenizer are not
counted, caches are off. Both sides use the processes that --processes says; the tokenizer library may use its threads on
either side. The CPU time of a row, over all processes and threads, depends less on what else the machine does, but holds the
start of worker processes as well. Token counts of both sides are printed, so that nobody wins by doing less.

The token ids of a row are the same on both sides; ms-swift trains one token more of each. Its chatml ends an answer with
`<|im_end|>` and a line end and puts both into the loss; here the loss ends with `<|im_end|>`, where generation stops, so the
line end after it is given and not learned. Of 10,000 rows that makes 1,512,850 trained tokens against 1,522,850.

Measured on 2 cores that had other work to do as well (SmolLM2's tokenizer, 10,000 alpaca rows, --processes 1, medians of 3):
swift 1,179 rows/s and 255 us of CPU a row, ms-swift 4.6.0 353 rows/s and 892 us: 3.3 times the rows, 3.5 times less CPU time.

    python tools/bench/encode_rate.py --tokenizer FOLDER [--data FILE] [--rows 10000] [--processes 1 2]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PEER = ["ms-swift==4.6.0", "msgspec", "torch==2.13.0"]

OURS_CODE = """
import json, os, sys, time
from pathlib import Path

def main():
    from transformers import AutoTokenizer
    from swift_core.batching.cache import load_or_encode
    from swift_core.config.sections import DataSection, EncodingSection, ModelSection, TemplateSection
    from swift_core.templates.chat import build_template

    tokenizer, data, processes, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    section = TemplateSection(template="chatml")
    template = build_template(AutoTokenizer.from_pretrained(tokenizer), section)
    settings = EncodingSection(load_from_cache_file=False, dataset_num_proc=processes)
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    found = load_or_encode(
        DataSection(dataset=[data], dataset_shuffle=False), ModelSection(offline=True), settings, template, section, max_length=limit
    )
    seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - cpu
    report = found.train_report
    print(json.dumps({"rows": report.rows, "tokens": report.tokens, "trained": report.trained_tokens, "seconds": seconds, "cpu": cpu}))

if __name__ == "__main__":
    main()
"""

PEER_CODE = """
import json, os, sys, time

def main():
    from swift.dataset import EncodePreprocessor, load_dataset
    from swift.model.register import get_processor
    from swift.template.register import get_template

    tokenizer, data, processes, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    template = get_template(get_processor(tokenizer, model_type="llama"), template_type="chatml", max_length=limit)
    template.set_mode("train")
    start, cpu = time.perf_counter(), sum(os.times()[:4])
    rows, _ = load_dataset([data], num_proc=processes, load_from_cache_file=False)
    encoded = EncodePreprocessor(template=template)(rows, num_proc=processes, load_from_cache_file=False)
    seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - cpu
    ids, labels = encoded["input_ids"], encoded["labels"]
    tokens, trained = sum(map(len, ids)), sum(sum(label != -100 for label in row[1:]) for row in labels)
    print(json.dumps({"rows": len(encoded), "tokens": tokens, "trained": trained, "seconds": seconds, "cpu": cpu}))

if __name__ == "__main__":
    main()
"""


def main() -> int:
    """Measure and print; 0 when all runs went through."""
    options = _options()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = _data(folder, options.data, options.rows)
        python = options.peer_python or _peer_environment(folder)
        scripts = {"swift": folder / "ours.py", "ms-swift": folder / "peer.py"}
        scripts["swift"].write_text(OURS_CODE, encoding="utf-8")
        scripts["ms-swift"].write_text(PEER_CODE, encoding="utf-8")
        print(f"rows: {options.rows:,} of {options.data or 'made-up rows'}; limit {options.max_length} tokens; cores: {os.cpu_count()}")
        for processes in options.processes:
            words = [options.tokenizer, str(data), str(processes), str(options.max_length)]
            found: dict[str, list[dict[str, Any]]] = {"swift": [], "ms-swift": []}
            for turn in range(options.turns):
                for side in ("swift", "ms-swift") if turn % 2 == 0 else ("ms-swift", "swift"):
                    program = sys.executable if side == "swift" else python
                    found[side].append(_run(program, scripts[side], words, folder / f"{side}-{processes}-{turn}"))
            _print(processes, found)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="folder of a model with its tokenizer")
    parser.add_argument("--data", help="JSON file with instruction, input and output; default: rows are made up")
    parser.add_argument("--rows", type=int, default=10000, help="rows of a run; those of --data are repeated")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="processes of both sides, one comparison for each")
    parser.add_argument("--turns", type=int, default=3, help="runs of each side")
    parser.add_argument("--max_length", type=int, default=2048)
    parser.add_argument("--peer-python", help="Python of an environment with ms-swift; default: one is made with uv")
    return parser.parse_args()


def _peer_environment(folder: Path) -> str:
    place = folder / "peer"
    python = str(place / "bin" / "python")
    subprocess.run(["uv", "venv", "-q", "--python", "3.11", str(place)], check=True)
    subprocess.run(["uv", "pip", "install", "-q", "--python", python, *PEER], check=True)
    return python


def _data(folder: Path, given: str | None, count: int) -> Path:
    if given:
        rows: list[dict[str, str]] = json.loads(Path(given).read_text(encoding="utf-8"))
    else:
        draw = random.Random(0)
        words = ["model", "answer", "the", "of", "recipe", "explain", "because", "first", "water", "city", "number", "history", "and"]
        rows = [{name: " ".join(draw.choices(words, k=draw.randint(*length))) for name, length in _LENGTHS.items()} for _ in range(1000)]
    keep = ("instruction", "input", "output")
    # A number in front keeps repeated rows apart.
    many = [
        {**{name: rows[i % len(rows)].get(name, "") for name in keep}, "instruction": f"{i}: {rows[i % len(rows)]['instruction']}"}
        for i in range(count)
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in many), encoding="utf-8")
    return path


_LENGTHS = {"instruction": (5, 40), "input": (0, 20), "output": (20, 300)}


def _run(python: str, script: Path, words: list[str], cache: Path) -> dict[str, Any]:
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(cache),
        "MODELSCOPE_CACHE": str(cache),
        "LOG_LEVEL": "ERROR",
    }
    done = subprocess.run([python, str(script), *words], env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script.name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _print(processes: int, found: dict[str, list[dict[str, Any]]]) -> None:
    rates = {side: statistics.median(run["rows"] / run["seconds"] for run in runs) for side, runs in found.items()}
    print(f"\nprocesses: {processes}")
    costs = {side: statistics.median(run["cpu"] / run["rows"] for run in runs) * 1e6 for side, runs in found.items()}
    for side, runs in found.items():
        each = ", ".join(f"{run['rows'] / run['seconds']:,.0f}" for run in runs)
        last = runs[-1]
        counts = f"{last['tokens']:,} tokens, {last['trained']:,} trained"
        print(f"  {side:9} {rates[side]:8,.0f} rows/s (median of {each}); {costs[side]:,.0f} us of CPU a row; {counts}")
    print(f"  ratio     {rates['swift'] / rates['ms-swift']:8.2f} in rows/s, {costs['ms-swift'] / costs['swift']:.2f} in CPU time")


if __name__ == "__main__":
    raise SystemExit(main())
