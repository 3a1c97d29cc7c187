"""`swift export`: a plan of actions, each of which writes a folder that appears whole, and goes on where it stopped."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from swift_core.config.export import ExportConfig
from swift_core.config.training import short_name
from swift_core.hub.local import existing_path
from swift_core.registry import EXPORTS
from swift_core.specs import ExportSpec
from swift_core.tasks.export_context import ExportContext, ExportResult, begin
from swift_core.tasks.export_record import Record, inputs_of, open_record
from swift_core.tasks.model_card import write_card
from swift_core.train.aside import EXPORT_FILE, check_target, written_aside

Action = Callable[[ExportContext, Path], ExportResult]
Upload = Callable[[ExportContext], ExportResult]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done, and where it goes.

    Attributes:
        actions: in the order in which they run.
        root: folder of the only result, or folder that holds the results.
        folders: action -> folder it writes.
    """

    actions: tuple[ExportSpec, ...]
    root: Path
    folders: dict[str, Path]


def make_plan(config: ExportConfig) -> Plan:
    """Return the plan that the settings describe, without looking at any file."""
    actions = tuple(EXPORTS.get(name) for name in config.wanted_actions())
    writers = [spec.name for spec in actions if spec.produces != "nothing"]
    named = {name: config.action(name).folder_name for name in writers}
    if config.export.output_dir:
        root = Path(config.export.output_dir).expanduser()
    else:
        source = config.loading.adapters[0] if config.loading.adapters else config.loading.model or "model"
        local = existing_path(source)
        # A model from a hub lies in a cache, where results do not belong.
        base = local if local is not None else Path(short_name(source))
        root = base.with_name(f"{base.name}-{named[writers[0]] if len(writers) == 1 else 'export'}")
    folders = {writers[0]: root} if len(writers) == 1 else {name: root / folder for name, folder in named.items()}
    return Plan(actions, root, folders)


def export(config: ExportConfig) -> ExportContext:
    """Run every action of the plan and return where it ended.

    Raises:
        ConfigError: when settings and files do not fit one another.
        CheckpointError: when a result is there already, or cannot be written.
    """
    plan = make_plan(config)
    context = begin(config)
    record = open_record(plan.root, config, inputs_of(config))
    sources = [path for name in (config.loading.model or "", *config.loading.adapters) if (path := existing_path(name)) is not None]
    for name, folder in plan.folders.items():
        if record.finished(name) is None:
            check_target(folder, exist_ok=config.export.exist_ok or name in record.done, sources=sources)
    if plan.folders:
        plan.root.parent.mkdir(parents=True, exist_ok=True)
    for number, spec in enumerate(plan.actions, 1):
        sys.stderr.write(f"[{number}/{len(plan.actions)}] {spec.name}: {spec.summary}\n")
        try:
            _step(spec, plan, context, record)
        except BaseException:
            if context.folders:
                sys.stderr.write(f"finished so far: {', '.join(context.folders)}; the same command goes on from there\n")
            raise
    record.close()
    return context


def _step(spec: ExportSpec, plan: Plan, context: ExportContext, record: Record) -> None:
    if spec.produces == "nothing":
        upload: Upload = EXPORTS.load(spec.name)
        result = upload(context)
        context.results[spec.name] = result
        context.say(result.lines)
        return
    known = record.finished(spec.name)
    if known is not None:
        folder, result = known
        context.say([f"done before: {folder}"])
    else:
        folder = plan.folders[spec.name]
        result = _write(spec, folder, context)
        record.add(spec.name, folder, result)
        context.say([*result.lines, f"written: {folder}"])
    context.folders[spec.name] = folder
    context.results[spec.name] = result
    if spec.produces == "adapter":
        context.adapter = folder
    elif spec.produces == "model":
        context.model = str(folder.resolve())
    elif spec.produces == "final":
        context.final = folder


def _write(spec: ExportSpec, folder: Path, context: ExportContext) -> ExportResult:
    action: Action = EXPORTS.load(spec.name)
    context.target = folder
    with written_aside(folder) as aside:
        result = action(context, aside)
        versions = {"python": platform.python_version(), **{name: version(name) for name in ("swift-core", "torch", "transformers")}}
        facts = {"action": spec.name, "source": context.model, "adapter": str(context.adapter or "") or None, "versions": versions}
        text = json.dumps({**facts, **asdict(result)}, ensure_ascii=False, indent=2, default=str)
        (aside / EXPORT_FILE).write_text(text + "\n", encoding="utf-8")
        write_card(aside, {**context.results, spec.name: result}, context, name=folder.name)
    return result


def write_tokens(context: ExportContext) -> ExportResult:
    """Write a data set as token ids; it goes alone and says itself what it did."""
    from swift_core.tasks.export_tokens import export_tokens

    export_tokens(context.config)
    return ExportResult(method="a data set as token ids")
