"""What `swift infer` and `swift deploy` do once their settings are known."""

from __future__ import annotations

import sys

from swift_core.errors import ConfigError, Problem
from swift_core.plugins import load_plugin_files
from swift_core.protocols import Engine, TextEngine
from swift_core.registry import ENGINES

from swift_infer.checkpoint import Checkpoint, adopt_checkpoint
from swift_infer.config import DeployConfig, InferConfig, SampleConfig


def run_infer(config: InferConfig) -> int:
    """Answer a data set, or chat in the terminal when there is none.

    Raises:
        SwiftError: when the model, the rows or the result file cannot be used.
    """
    load_plugin_files(config.launch.external_plugins)
    checkpoint, notes = _adopt(config)
    _say(notes)
    if _task_of(config) != "causal_lm":
        from swift_infer.text_batch import read_dataset

        return read_dataset(config, checkpoint, lambda: _build_text_engine(config))
    if config.is_batch:
        from swift_infer.batch import answer_dataset

        return answer_dataset(config, checkpoint, lambda: _build_engine(config))
    from swift_infer.chat.terminal import TerminalChat

    engine = _build_engine(config)
    try:
        return TerminalChat(engine, config.generation.as_request(), stream=config.inference.stream is not False).run()
    finally:
        engine.close()


def run_sample(config: SampleConfig) -> int:
    """Answer every row several times and write the best answers.

    Raises:
        SwiftError: when the model, the rows or the output file cannot be used.
    """
    load_plugin_files(config.launch.external_plugins)
    checkpoint, notes = _adopt(config)
    _say(notes)
    from swift_infer.sample import sample_dataset

    return sample_dataset(config, checkpoint, lambda: _build_engine(config))


def run_deploy(config: DeployConfig) -> int:
    """Serve the model until SIGTERM or SIGINT.

    Raises:
        SwiftError: when the port is taken or the model cannot be loaded.
    """
    load_plugin_files(config.launch.external_plugins)
    _, notes = _adopt(config)
    _say(notes)
    from swift_core.errors import MissingDependencyError

    try:
        from swift_infer.server.serve import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette"):
            raise
        raise MissingDependencyError(error.name, needed_for="`swift deploy`", install="swift-infer[serve]") from error
    texts = _task_of(config) != "causal_lm"
    return serve(config, lambda: _build_text_engine(config) if texts else _build_engine(config))


def _build_engine(config: InferConfig | DeployConfig) -> Engine:
    return ENGINES.load(config.inference.infer_backend)(config.engine_config())


def _adopt(config: InferConfig | DeployConfig) -> tuple[Checkpoint | None, list[str]]:
    # An endpoint's model has no folder here.
    return (None, []) if config.inference.infer_backend == "client" else adopt_checkpoint(config)


def _task_of(config: InferConfig | DeployConfig) -> str:
    """Return what the model is for: as the settings or the checkpoint say, else as its files do.

    Raises:
        ConfigError: when this engine does not run models for it.
    """
    task = config.task.task_type
    remote = config.inference.infer_backend == "client"
    if task is None and not remote and config.loading.model and not config.loading.adapters:
        from swift_core.models.detection import detect_folder
        from swift_core.models.loading import resolve_model_folder

        found = detect_folder(resolve_model_folder(config.loading), model_type=config.loading.model_type).task_type
        task = found if found in ("seq_cls", "embedding", "reranker", "generative_reranker") else None
        if task is not None:
            config.derive("task_type", task, "derived: from the model's files")
            _say([f"--task_type {task} (from the model's files)"])
    if task not in (None, "causal_lm") and config.inference.infer_backend != "transformers":
        what = f"does not run models for {task} yet"
        raise ConfigError([Problem(f"--infer_backend {config.inference.infer_backend}", what, "--infer_backend transformers")])
    return task or "causal_lm"


def _build_text_engine(config: InferConfig | DeployConfig) -> TextEngine:
    from swift_infer.engines.texts import TextEngine

    return TextEngine(config.engine_config())


def _say(notes: list[str]) -> None:
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
