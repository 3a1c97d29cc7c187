"""From the config schema to form fields, and from what a person entered to a config: pure functions, no widgets."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from swift_core.config.command import MASK, CommandConfig, tuner_flags
from swift_core.config.fields import Setting
from swift_core.errors import ConfigError, Problem
from swift_core.registry import OPTIMIZERS, TUNERS

Widget = Literal["checkbox", "choice", "choices", "text", "secret", "list", "json"]

# Set by the job manager, which knows where a run goes and how its output is read.
MANAGED = ("output_dir", "add_version", "logging_dir", "disable_tqdm")
# These import code by name or path: from a page that would let a visitor run anything.
RUNS_CODE = ("external_plugins", "callbacks")


@dataclass(frozen=True, slots=True)
class FormField:
    """One setting as a form shows it.

    Attributes:
        name: flat name.
        group: heading it belongs under.
        help: one line.
        basic: shown in front rather than under a heading.
        widget: kind of input.
        choices: allowed words, where there are some.
        default: value of the widget when nothing is entered.
        owners: tuners it belongs to; empty for settings of the command.
        secret: masked in previews and kept out of saved files.
        number: whether the text is a number.
    """

    name: str
    group: str
    help: str
    basic: bool
    widget: Widget
    choices: tuple[str, ...]
    default: Any
    owners: tuple[str, ...] = ()
    secret: bool = False
    number: bool = False

    @property
    def flag(self) -> str:
        """Return the command line flag."""
        return f"--{self.name}"


def form_fields(kind: type[CommandConfig]) -> list[FormField]:
    """Return the fields of a command in the order of its schema, the options of the installed tuners behind `tuner_type`."""
    tuner_fields = [_field(owners[0], tuple(setting.owner for setting in owners)) for owners in tuner_flags().values()]
    found: list[FormField] = []
    for setting in kind.settings().values():
        if setting.name in MANAGED or setting.name in RUNS_CODE:
            continue
        found.append(_field(setting))
        if setting.name == "tuner_type":
            found += tuner_fields
    return found


def _field(setting: Setting, owners: tuple[str, ...] = ()) -> FormField:
    choices = setting.choices
    widget: Widget = "text"
    if setting.name == "tuner_type":
        choices, widget = tuple(TUNERS.names()), "choice"
    elif setting.name == "optim":
        choices, widget = tuple(OPTIMIZERS.names()), "choice"
    elif setting.secret:
        widget = "secret"
    elif setting.shape == "bool":
        widget = "choice" if setting.optional else "checkbox"
        choices = ("true", "false") if setting.optional else ()
    elif setting.shape == "list":
        widget = "choices" if choices else "list"
    elif setting.shape == "dict":
        widget = "json"
    elif choices:
        widget = "choice"
    if widget == "choice" and setting.optional:
        choices = ("", *choices)
    return FormField(
        name=setting.name,
        group=setting.group,
        help=setting.help,
        basic=setting.basic,
        widget=widget,
        choices=choices,
        default=as_widget_value(widget, setting.default),
        owners=owners,
        secret=setting.secret,
        number=setting.metavar in ("INT", "FLOAT"),
    )


def as_widget_value(widget: Widget, value: Any) -> Any:
    """Return a setting's value as its widget shows it: one item a line for lists, JSON for dicts, empty for none."""
    if widget in ("checkbox", "choices"):
        return value
    if value is None:
        return ""
    if widget == "list":
        return "\n".join(str(item) for item in value)
    if widget == "json":
        return json.dumps(value, ensure_ascii=False) if value else ""
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a form says.

    Attributes:
        values: flat name -> value, for the settings that differ from their default.
        problems: everything wrong, by flag.
    """

    values: Mapping[str, Any]
    problems: Sequence[Problem]


def read_form(kind: type[CommandConfig], fields: Sequence[FormField], entered: Mapping[str, Any]) -> Reading:
    """Turn widget values into settings and check them as the command line would.

    Options of a tuner that is not chosen are left out: the form hides them.
    """
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    tuner = entered.get("tuner_type")
    for field in fields:
        value = entered.get(field.name, field.default)
        if (field.owners and tuner not in field.owners) or _same(field, value):
            continue
        try:
            values[field.name] = _setting_value(field, value)
        except ValueError as error:
            problems.append(Problem(field.flag, str(error), 'write it as {"key": value}'))
    try:
        kind.from_values(values, dict.fromkeys(values, "flag"), problems)
    except ConfigError as error:
        return Reading(values, error.problems)
    return Reading(values, problems)


def _same(field: FormField, value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() == field.default or (value.strip() == "" and field.default == "")
    return value == field.default or value is None


def _setting_value(field: FormField, value: Any) -> Any:
    if field.widget == "list":
        return [line.strip() for line in str(value).splitlines() if line.strip()]
    if field.widget == "json":
        try:
            parsed = json.loads(value or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"is not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(parsed, dict):
            raise ValueError(f"holds a {type(parsed).__name__}, not an object")
        return parsed
    if isinstance(value, str):
        text = value.strip()
        if field.choices == ("", "true", "false"):
            return {"true": True, "false": False}.get(text)
        return (_as_number(text) if field.number else text) if text else None
    return value


def _as_number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text  # the schema says what is wrong with it


def split_secrets(fields: Sequence[FormField], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (settings that may be saved and shown, secrets)."""
    secret = {field.name for field in fields if field.secret}
    public = {key: value for key, value in values.items() if key not in secret}
    return public, {key: value for key, value in values.items() if key in secret}


def masked(fields: Sequence[FormField], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with every secret masked, in their order."""
    secret = {field.name for field in fields if field.secret}
    return {key: MASK if key in secret else value for key, value in values.items()}


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return settings as a config file."""
    return yaml.safe_dump(dict(values), allow_unicode=True, sort_keys=False) if values else ""


def as_command(command: str, values: Mapping[str, Any]) -> str:
    """Return settings as a command for a POSIX shell, one flag a line."""
    lines = [f"swift {command}"]
    lines += [" ".join(shlex.quote(word) for word in _words(name, value)) for name, value in values.items()]
    return " \\\n    ".join(lines)


def _words(name: str, value: Any) -> list[str]:
    flag = f"--{name}"
    if isinstance(value, bool):
        return [flag, str(value).lower()]
    if isinstance(value, dict):
        return [flag, json.dumps(value, ensure_ascii=False)]
    if isinstance(value, list):
        return [flag, *(str(item) for item in value)]
    text = str(value)
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]
