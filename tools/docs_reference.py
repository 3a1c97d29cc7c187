"""The reference pages of the documentation, made from the registries, the config schema and the source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from docs_errors import error_page
from swift_core.config.aliases import ALIASES
from swift_core.config.combinations import MODES, table
from swift_core.config.command import CommandConfig
from swift_core.config.fields import Setting
from swift_core.config.load import all_settings
from swift_core.registry import (
    AGENT_TEMPLATES,
    COMMANDS,
    DATASETS,
    ENGINES,
    ENVIRONMENTS,
    EXPORTS,
    MODELS,
    OPTIMIZERS,
    REWARDS,
    SCHEDULERS,
    TASKS,
    TEMPLATES,
    TUNERS,
    Registry,
    import_target,
)
from swift_core.specs import CommandSpec
from swift_ui.i18n import catalogue

LANGUAGES = ("en", "zh")
# Words of the pages that no registry and no catalogue of the web page has.
_ZH = {
    "Reference": "参考",
    "Made from the code of this version.": "由当前版本的代码生成。",
    "Options of": "命令选项：",
    "flag": "参数",
    "label": "名称",
    "values": "取值",
    "default": "默认值",
    "meaning": "含义",
    "name": "名称",
    "Models": "模型",
    "Templates": "对话模板",
    "Agent formats": "Agent 格式",
    "Data sets": "数据集",
    "Tuners": "微调方法",
    "Optimizers": "优化器",
    "Tasks and losses": "任务与损失",
    "Rewards": "奖励函数",
    "Schedulers and environments": "多轮调度器与环境",
    "Engines": "推理引擎",
    "Exports": "导出动作",
    "Parallel combinations": "并行方式的组合",
    "Other names of flags": "参数别名",
    "Errors": "错误索引",
    "Commands": "命令",
    "command": "命令",
    "type": "类型",
    "template": "模板",
    "kind": "类别",
    "subsets": "子集",
    "install": "安装",
    "yes": "是",
    "no": "否",
    "merge": "可合并",
    "quantised base": "量化底座",
    "several adapters": "多适配器",
    "gradient checkpointing": "梯度检查点",
    "also called": "别名",
    "numbers per weight": "每个参数的状态数",
    "losses": "损失",
    "here": "本项目中的名称",
    "elsewhere": "其他工具或旧版本中的名称",
    "way": "方式",
    "The first loss is the default.": "第一个损失是默认值。",
    "What goes together, and why not where it does not.": "哪些可以一起使用；不能一起使用时给出原因。",
    "Basic options are in bold.": "粗体为基本选项。",
    "exit code": "退出码",
    "message": "错误信息",
    "fix": "解决办法",
    "Every message that the code can raise, with its remedy; … stands for what the message fills in.": (
        "代码可能抛出的每一条错误信息及其解决办法；… 处由实际内容填充。"
    ),
}

Rows = Iterable[Sequence[object]]
Say = Callable[[str], str]


def pages(language: str) -> dict[str, str]:
    """Return the reference pages of a language: file name in `reference/` -> Markdown."""

    def say(text: str) -> str:
        return text if language == "en" else _ZH[text]

    found = {
        "models.md": _models(say),
        "templates.md": _templates(say),
        "datasets.md": _datasets(say),
        "tuners.md": _tuners(say),
        "optimizers.md": _optimizers(say),
        "tasks.md": _tasks(say),
        "rewards.md": _plain(say, ("Rewards", REWARDS)),
        "turns.md": _plain(say, ("Schedulers and environments", SCHEDULERS), ("", ENVIRONMENTS)),
        "engines.md": _plain(say, ("Engines", ENGINES)),
        "exports.md": _plain(say, ("Exports", EXPORTS)),
        "parallel.md": _parallel(say),
        "aliases.md": _aliases(say),
        "errors.md": error_page(say, markdown_table),
        **{f"commands/{spec.name}.md": _command(spec, language, say) for spec in configured()},
    }
    return {"index.md": _index(say, sorted(found)), **found}


def configured() -> list[CommandSpec]:
    """Return the commands whose settings come from the schema."""
    return [spec for spec in COMMANDS if spec.config is not None]


def markdown_table(head: Sequence[str], rows: Rows) -> str:
    """Return a Markdown table; what would break its cells is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    text = str(value).replace("\n", " ")
    text = text if "`" in text else text.replace("<", "&lt;")  # inline code shows it as it is
    return "\\|".join(text.replace("\\|", "|").split("|"))


def _page(say: Say, title: str, *parts: str) -> str:
    return "\n\n".join([f"# {say(title)}", say("Made from the code of this version."), *(part for part in parts if part)]) + "\n"


def _index(say: Say, names: Sequence[str]) -> str:
    rows = [(f"[`swift {spec.name}`](commands/{spec.name}.md)", spec.summary) for spec in configured()]
    rows += [(f"`swift {spec.name}`", spec.summary) for spec in COMMANDS if spec.config is None]
    listed = "\n".join(name.removesuffix(".md") for name in names)
    tree = f"```{{toctree}}\n:maxdepth: 1\n\n{listed}\n```"
    return _page(say, "Reference", markdown_table((say("command"), say("meaning")), rows), tree)


def _command(spec: CommandSpec, language: str, say: Say) -> str:
    kind = cast(type[CommandConfig], import_target(cast(str, spec.config), needed_for=spec.name))
    texts = catalogue(language)
    groups: dict[str, list[Setting]] = {}
    for setting in all_settings(kind).values():
        groups.setdefault(setting.group, []).append(setting)
    labelled = language != "en"
    head = (say("flag"), *((say("label"),) if labelled else ()), say("values"), say("default"), say("meaning"))
    parts = [f"`swift {spec.name}`: {spec.summary}", say("Basic options are in bold.")]
    for group, settings in groups.items():
        rows = [_flag(setting, texts["field"] if labelled else None) for setting in settings]
        parts.append(f"## {texts['group'].get(group, group)}\n\n" + markdown_table(head, rows))
    body = _page(say, "Options of", *parts)
    return body.replace(f"# {say('Options of')}", f"# swift {spec.name}", 1)


def _flag(setting: Setting, labels: dict[str, str] | None) -> list[str]:
    name = f"`--{setting.name}`"
    shown = "" if setting.default in (None, "", [], {}) else f"`{_plain_value(setting.default)}`"
    label = [] if labels is None else [labels.get(setting.name, "")]
    return [f"**{name}**" if setting.basic else name, *label, f"`{setting.metavar}`", shown, setting.help]


def _plain_value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in cast(list[Any], value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _models(say: Say) -> str:
    rows = [(f"`{spec.name}`", spec.kind, spec.model_type, spec.template, spec.hf_id, spec.ms_id) for spec in MODELS]
    head = (say("name"), say("kind"), say("type"), say("template"), "Hugging Face", "ModelScope")
    return _page(say, "Models", markdown_table(head, rows))


def _templates(say: Say) -> str:
    head = (say("name"), say("meaning"))
    formats = markdown_table(head, [(f"`{spec.name}`", spec.summary) for spec in TEMPLATES])
    agents = markdown_table(head, [(f"`{spec.name}`", spec.summary) for spec in AGENT_TEMPLATES])
    return _page(say, "Templates", formats, f"## {say('Agent formats')}", agents)


def _datasets(say: Say) -> str:
    rows = [(f"`{spec.name}`", spec.summary, ", ".join(spec.subsets), spec.hf_id, spec.ms_id) for spec in DATASETS]
    return _page(say, "Data sets", markdown_table((say("name"), say("meaning"), say("subsets"), "Hugging Face", "ModelScope"), rows))


def _tuners(say: Say) -> str:
    facts = ("merge", "quantised base", "several adapters", "gradient checkpointing")
    head = (say("name"), *(say(fact) for fact in facts), "`target_parameters`", say("meaning"))
    rows: list[Sequence[object]] = []
    for spec in TUNERS:
        held = (spec.mergeable, spec.quantised, spec.several, spec.checkpointing, spec.parameters)
        names = ", ".join(f"`{name}`" for name in (spec.name, *spec.aliases))
        rows.append((names, *(say("yes") if holds else say("no") for holds in held), spec.summary))
    return _page(say, "Tuners", markdown_table(head, rows))


def _optimizers(say: Say) -> str:
    rows = [(f"`{spec.name}`", f"{spec.states:g}", spec.install or "", spec.summary) for spec in OPTIMIZERS]
    return _page(say, "Optimizers", markdown_table((say("name"), say("numbers per weight"), say("install"), say("meaning")), rows))


def _tasks(say: Say) -> str:
    rows = [(f"`{spec.name}`", spec.summary, ", ".join(f"`{loss}`" for loss in getattr(spec, "loss_types", ()))) for spec in TASKS]
    head = (say("name"), say("meaning"), say("losses"))
    return _page(say, "Tasks and losses", say("The first loss is the default."), markdown_table(head, rows))


def _plain(say: Say, *sections: tuple[str, Registry[Any]]) -> str:
    head = (say("name"), say("install"), say("meaning"))
    parts: list[str] = []
    for _, registry in sections:
        rows = [(f"`{spec.name}`", f"`pip install '{spec.install}'`" if spec.install else "", spec.summary) for spec in registry]
        rows += [(f"`{name}`", f"`pip install '{package}'`", "") for name, package in registry.absent().items()]
        parts.append(markdown_table(head, rows))
    return _page(say, sections[0][0], *parts)


def _parallel(say: Say) -> str:
    rows = list(table())
    head = list(rows[0])
    modes = markdown_table((say("way"), say("meaning")), [(f"`{name}`", summary) for name, summary in MODES.items()])
    combinations = markdown_table(head, [[row[name] for name in head] for row in rows])
    return _page(say, "Parallel combinations", say("What goes together, and why not where it does not."), modes, combinations)


def _aliases(say: Say) -> str:
    rows = [(f"`--{alias}`", f"`--{name}`") for alias, name in sorted(ALIASES.items())]
    return _page(say, "Other names of flags", markdown_table((say("elsewhere"), say("here")), rows))
