"""`swift eval`: look at the endpoint and the data first, then run the benchmarks and write the report."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from pathlib import Path

from swift_core.errors import ConfigError, EngineError, Problem

from swift_eval.config import EvalConfig
from swift_eval.datasets import check_local_data
from swift_eval.endpoint import base_url, check_endpoint
from swift_eval.report import BenchmarkResult, Evaluation, table, write


def run(config: EvalConfig) -> int:
    """Evaluate, print the table, and return 0 when every sample of every benchmark was scored, else 1."""
    folder = new_folder(Path(config.evaluation.eval_output_dir))
    evaluation = evaluate(config, folder)
    data, text = write(evaluation, folder)
    sys.stdout.write(f"{table(evaluation)}\n\nreport: {text}\n        {data}\n")
    return 0 if evaluation.complete else 1


def evaluate(config: EvalConfig, folder: Path) -> Evaluation:
    """Run the benchmarks of a config and return what they found.

    Args:
        config: checked settings.
        folder: receives one subfolder for each benchmark.

    Raises:
        EngineError: when the endpoint does not answer, refuses the key or does not serve the model.
        NotFoundError: when local data is absent.
        DataError: when a row of local data cannot be evaluated.
        ConfigError: for an unknown benchmark or unknown keys in the JSON settings.
    """
    endpoint, settings = config.endpoint, config.evaluation
    model, url = endpoint.model or "", base_url(endpoint.eval_url or "")
    check_endpoint(url, model, api_key=endpoint.api_key, timeout=endpoint.connect_timeout)
    judged = "judge" in settings.extra_eval_args
    for name in settings.eval_dataset:
        check_local_data(name, settings.eval_dataset_args.get(name, {}), judged=judged)

    from swift_eval.backend import EVALSCOPE_VERSION, BenchmarkTask, check_task
    from swift_eval.backend import evaluate as evaluate_one

    tasks = [
        BenchmarkTask(
            benchmark=name,
            model=model,
            url=url,
            folder=folder / name,
            api_key=endpoint.api_key,
            options=settings.eval_dataset_args.get(name, {}),
            generation=settings.eval_generation_config,
            limit=settings.eval_limit,
            concurrency=settings.eval_num_proc,
            use_hf=settings.use_hf,
            seed=settings.seed,
            extra=settings.extra_eval_args,
        )
        for name in settings.eval_dataset
    ]
    problems: list[Problem] = []
    for task in tasks:
        problems += [problem for problem in check_task(task) if problem not in problems]
    if problems:
        raise ConfigError(problems)
    started, clock = datetime.now().astimezone().isoformat(timespec="seconds"), time.monotonic()
    results: list[BenchmarkResult] = []
    for task in tasks:
        result = evaluate_one(task)
        results.append(result)
        if result.error is not None and task is not tasks[-1]:
            try:
                check_endpoint(url, model, api_key=endpoint.api_key, timeout=endpoint.connect_timeout)
            except EngineError as error:
                results += [BenchmarkResult(later.benchmark, error=f"not run: {error.message}") for later in tasks[len(results) :]]
                break
    return Evaluation(
        model=model,
        endpoint=url,
        backend=f"EvalScope {EVALSCOPE_VERSION}",
        started=started,
        seconds=round(time.monotonic() - clock, 3),
        settings=config.flat(),
        results=tuple(results),
    )


def new_folder(parent: Path) -> Path:
    """Return a folder under `parent` that does not exist yet, named after the time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder, number = parent / stamp, 1
    while folder.exists():
        number += 1
        folder = parent / f"{stamp}-{number}"
    return folder
