"""How a setting is declared, and how the settings of a section are described to parser, help, docs and forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


class Section(BaseModel):
    """A group of settings that one stage of the program reads. Construction has no effects."""

    model_config = ConfigDict(
        extra="forbid", validate_default=False, validate_assignment=True, coerce_numbers_to_str=True, protected_namespaces=()
    )


def option(
    default: Any,
    help: str,
    *,
    basic: bool = False,
    secret: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """Declare a setting.

    Args:
        default: value when nothing is given; a list, dict or set is copied for every instance.
        help: one line for `--help`, docs and forms.
        basic: whether plain `--help` lists it (`--help_all` lists all).
        secret: whether it is masked wherever the configuration is shown or saved.
        ge: least value of a number.
        gt: value that a number must exceed.
        le: greatest value of a number.
        lt: value that a number must stay below.
    """
    extra: dict[str, Any] = {"basic": basic, "secret": secret}
    bounds: dict[str, Any] = {key: value for key, value in {"ge": ge, "gt": gt, "le": le, "lt": lt}.items() if value is not None}
    if isinstance(default, list | dict | set):
        factory: Callable[[], Any] = cast(Any, default).copy
        return Field(default_factory=factory, description=help, json_schema_extra=extra, **bounds)
    return Field(default=default, description=help, json_schema_extra=extra, **bounds)


@dataclass(frozen=True, slots=True)
class Setting:
    """One flat setting as parser, help and forms see it.

    Attributes:
        name: flag name without dashes.
        section: attribute of the command config that holds it, or `tuner_options`.
        group: heading in the help.
        annotation: declared type.
        default: declared default.
        help: one line.
        basic: listed by plain `--help`.
        secret: masked in every output.
        owner: registry entry it belongs to, such as `lora`, or empty.
    """

    name: str
    section: str
    group: str
    annotation: Any
    default: Any
    help: str
    basic: bool
    secret: bool
    owner: str = ""

    @property
    def shape(self) -> Literal["bool", "list", "dict", "scalar"]:
        """Say how many words the flag takes: `bool` zero or one, `list` many, `dict` one JSON text, `scalar` one."""
        kinds = {get_origin(part) or part for part in _members(self.annotation)}
        if list in kinds or tuple in kinds:
            return "list"
        if dict in kinds and str not in kinds:
            return "dict"
        return "bool" if bool in kinds and not kinds & {str, int, float} else "scalar"

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the allowed words of a literal type, or nothing."""
        found: list[str] = []
        for part in _members(self.annotation):
            if get_origin(part) is Literal:
                found += [str(value) for value in get_args(part)]
            elif get_origin(part) is list:
                for inner in get_args(part):
                    if get_origin(inner) is Literal:
                        found += [str(value) for value in get_args(inner)]
        return tuple(found)

    @property
    def optional(self) -> bool:
        """Say whether `None` is allowed."""
        return NoneType in _members(self.annotation)

    @property
    def metavar(self) -> str:
        """Return the placeholder shown in help."""
        if self.choices:
            return "{" + ",".join(self.choices) + "}" + (" ..." if self.shape == "list" else "")
        if self.shape == "bool":
            return "{true,false}"
        names = {int: "INT", float: "FLOAT", str: "TEXT"}
        word = next((names[part] for part in _members(self.annotation) if part in names), "TEXT")
        return {"list": f"{self._item()} ...", "dict": "JSON", "scalar": word, "bool": ""}[self.shape]

    def _item(self) -> str:
        names = {int: "INT", float: "FLOAT"}
        for part in _members(self.annotation):
            if get_origin(part) is list:
                return next((names[inner] for inner in get_args(part) if inner in names), "TEXT")
        return "TEXT"


def _members(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin is Union or origin is UnionType:
        return [part for member in get_args(annotation) for part in _members(member)]
    return [annotation]


def section_settings(model: type[BaseModel], *, section: str, owner: str = "") -> dict[str, Setting]:
    """Return the settings that a section declares, by name."""
    group = (model.__doc__ or section).strip().splitlines()[0].rstrip(".")
    return {name: _setting(name, info, section, group, owner) for name, info in model.model_fields.items()}


def _setting(name: str, info: FieldInfo, section: str, group: str, owner: str) -> Setting:
    raw = info.json_schema_extra
    extra: Mapping[str, Any] = cast(dict[str, Any], raw) if isinstance(raw, dict) else {}
    default: Any = info.get_default(call_default_factory=True) if info.default_factory is None else cast(Any, info.default_factory)()
    return Setting(
        name=name,
        section=section,
        group=group,
        annotation=info.annotation,
        default=None if default is PydanticUndefined else default,
        help=info.description or "",
        basic=bool(extra.get("basic")),
        secret=bool(extra.get("secret")),
        owner=owner,
    )
