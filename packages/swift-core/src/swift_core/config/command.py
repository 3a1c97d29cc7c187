"""A command's configuration: sections inside, flat names outside."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from swift_core.config.aliases import ALIASES
from swift_core.config.fields import Section, Setting, section_settings
from swift_core.config.sections import TunerSection
from swift_core.errors import ConfigError, Problem
from swift_core.registry import TUNERS, import_target, nearest

MASK = "***"


class CommandConfig(BaseModel):
    """Base of all command configs.

    A subclass lists its sections as fields. Values are given and read by flat name: `SftConfig(model="m", lora_rank=8)`
    and `config.lora_rank`; code that works on one stage takes that stage's section, such as `config.data`.

    Raises:
        ConfigError: with every problem of the values at once.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    # Name of the command, for messages and files.
    command: ClassVar[str] = ""
    # Defaults of this command that differ from those of the sections.
    overrides: ClassVar[Mapping[str, Any]] = {}
    # Settings that come with a package that may be absent -> what to install.
    elsewhere: ClassVar[Mapping[str, str]] = {}

    _sources: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    def __init__(self, **values: Any) -> None:
        nested = {name: value for name, value in values.items() if isinstance(value, Section)}
        flat = {name: value for name, value in values.items() if name not in nested}
        build = _Build(type(self), flat, dict.fromkeys(flat, "python"))
        arranged = build.arrange()
        super().__init__(**{**arranged, **nested})
        self._sources = build.sources
        self.finish()

    @classmethod
    def from_values(cls, values: Mapping[str, Any], sources: Mapping[str, str], problems: list[Problem] | None = None) -> Self:
        """Build from flat values that came from files and flags.

        Args:
            values: flat name -> value; texts are converted to the declared type.
            sources: flat name -> where it came from, such as `flag` or `run.yaml:3`.
            problems: what the caller already found wrong; reported together with what is found here.

        Raises:
            ConfigError: with every problem at once.
        """
        build = _Build(cls, values, sources, problems)
        arranged = build.arrange()
        config = cls.model_construct()
        BaseModel.__init__(config, **arranged)
        config._sources = build.sources
        config.finish()
        return config

    def finish(self) -> None:
        """Fill defaults that depend on other settings and check combinations. Pure: no I/O, no imports of heavy libraries."""
        problems = self.check()
        if problems:
            raise ConfigError(problems)

    def check(self) -> list[Problem]:
        """Return what is wrong with the combination of settings."""
        return []

    def derive(self, name: str, value: Any, why: str) -> None:
        """Set a setting that nobody gave, and remember why."""
        setting = self.settings()[name]
        setattr(getattr(self, setting.section), name, value)
        self._sources[name] = why

    def given(self, name: str) -> bool:
        """Say whether a setting was given by file, flag or Python, as something else than its default."""
        setting = self.settings().get(name)
        default = setting.default if setting is not None else None
        return name in self._sources and not self._sources[name].startswith("derived") and getattr(self, name) != default

    @classmethod
    def settings(cls) -> dict[str, Setting]:
        """Return the settings of all sections of this command, by flat name, without tuner options."""
        return _settings(cls)

    def flat(self, *, mask: bool = True) -> dict[str, Any]:
        """Return all values by flat name, tuner options included; secrets are masked."""
        values: dict[str, Any] = {}
        for name, setting in self.settings().items():
            values[name] = _plain(getattr(getattr(self, setting.section), name), setting.secret and mask)
        options = self._tuner_options()
        if options is not None:
            values.update({name: _plain(getattr(options, name), False) for name in type(options).model_fields})
        return values

    def source(self, name: str) -> str:
        """Return where a value came from: `default`, `flag`, `file:line`, `python` or `derived: why`."""
        return self._sources.get(name, "default")

    def _tuner_options(self) -> Section | None:
        tuner = self.__dict__.get("tuner")
        return tuner.options if isinstance(tuner, TunerSection) else None

    def __getattr__(self, name: str) -> Any:
        # transformers callbacks and users read settings flat: config.learning_rate.
        if name.startswith("_"):
            return cast(Any, super()).__getattr__(name)  # pydantic's private attributes
        if name not in type(self).model_fields:
            setting = type(self).settings().get(name)
            if setting is not None:
                return getattr(getattr(self, setting.section), name)
            options = self._tuner_options()
            if options is not None and name in type(options).model_fields:
                return getattr(options, name)
        raise AttributeError(f"{type(self).__name__} has no setting {name!r}")


def _plain(value: Any, secret: bool) -> Any:
    return MASK if secret and value is not None else value


@cache
def _settings(cls: type[CommandConfig]) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    for section in _section_order(cls):
        kind = cls.model_fields[section].annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            raise TypeError(f"{cls.__name__}.{section} is not a Section")
        for name, setting in section_settings(kind, section=section).items():
            if name == "options":
                continue
            if name in found or name in cls.model_fields:
                raise TypeError(f"{cls.__name__}: the setting {name!r} is declared twice")
            found[name] = setting
    for name, value in cls.overrides.items():
        setting = found[name]
        found[name] = Setting(
            **{**{key: getattr(setting, key) for key in Setting.__dataclass_fields__}, "default": value}  # type: ignore[arg-type]
        )
    return found


def _section_order(cls: type[CommandConfig]) -> list[str]:
    # What a command adds (model, data) comes before what it inherits (training loop).
    inherited = [base.model_fields for base in cls.__mro__ if issubclass(base, CommandConfig)]
    return sorted(cls.model_fields, key=lambda name: -sum(name in fields for fields in inherited), reverse=True)


@cache
def tuner_settings(tuner: str) -> dict[str, Setting]:
    """Return the flags that belong to one tuner, by name."""
    model = tuner_options_class(tuner)
    return section_settings(model, section="options", owner=tuner) if model is not None else {}


def tuner_options_class(tuner: str) -> type[Section] | None:
    """Return the options model of a tuner, or None when it has no options of its own."""
    spec = TUNERS.get(tuner)
    if spec.options is None:
        return None
    return cast(type[Section], import_target(spec.options, needed_for=f"tuner {tuner!r}", install=spec.install))


def tuner_flags() -> dict[str, list[Setting]]:
    """Return every flag of every installed tuner, by name, with one entry for each tuner that has it."""
    flags: dict[str, list[Setting]] = {}
    for spec in TUNERS:
        for name, setting in tuner_settings(spec.name).items():
            flags.setdefault(name, []).append(setting)
    return flags


def fit(setting: Setting, value: Any) -> Any:
    """Return a value in the shape its setting has: one item as a list of one, a bool where a word is wanted as that word."""
    if setting.shape == "list" and value is not None and not isinstance(value, list | tuple):
        return [value]
    if setting.shape == "scalar" and isinstance(value, bool):
        return str(value).lower()
    return cast(Any, value)


class _Build:
    """Turns flat values into sections, collecting every problem."""

    def __init__(
        self,
        cls: type[CommandConfig],
        values: Mapping[str, Any],
        sources: Mapping[str, str],
        problems: list[Problem] | None = None,
    ) -> None:
        self.cls = cls
        self.values = dict(values)
        self.sources = dict(sources)
        self.problems = list(problems or [])
        self.has_tuners = "tuner" in cls.model_fields

    def arrange(self) -> dict[str, Any]:
        """Return section name -> section.

        Raises:
            ConfigError: with every problem at once.
        """
        settings = self.cls.settings()
        merged = {**{name: value for name, value in self.cls.overrides.items()}, **self.values}
        buckets: dict[str, dict[str, Any]] = {section: {} for section in self.cls.model_fields}
        leftover: dict[str, Any] = {}
        for name, value in merged.items():
            if name in settings:
                buckets[settings[name].section][name] = fit(settings[name], value)
            else:
                leftover[name] = value
        options = self._options(buckets, leftover)
        sections: dict[str, Any] = {}
        for section, info in self.cls.model_fields.items():
            kind = cast(type[Section], info.annotation)
            built = self._validate(kind, buckets[section])
            if built is not None:
                sections[section] = built
        if self.problems:
            raise ConfigError(self.problems)
        if options is not None:
            sections["tuner"].options = options
        return sections

    def _options(self, buckets: dict[str, dict[str, Any]], leftover: dict[str, Any]) -> Section | None:
        if not self.has_tuners:
            self._unknown(leftover, set())
            return None
        default = self.cls.settings()["tuner_type"].default
        tuner = str(buckets["tuner"].get("tuner_type", default))
        if tuner not in TUNERS:
            near = nearest(tuner, TUNERS.names())
            packages = TUNERS.absent()
            fix = (
                f"pip install {packages[tuner]}, or --tuner_type full"
                if tuner in packages
                else f"one of {', '.join(near or TUNERS.names())}"
            )
            self.problems.append(Problem(self._where("tuner_type"), f"no tuner {tuner!r} is installed", fix))
            self._unknown(leftover, set())
            return None
        flags = tuner_settings(tuner)
        own = {name: fit(flags[name], value) for name, value in leftover.items() if name in flags}
        self._unknown({name: value for name, value in leftover.items() if name not in own}, set(flags), tuner)
        model = tuner_options_class(tuner)
        return self._validate(model, own) if model is not None else None

    def _unknown(self, leftover: Mapping[str, Any], further: set[str], tuner: str = "") -> None:
        flags = tuner_flags() if leftover and self.has_tuners else {}
        for name in leftover:
            owners = [setting.owner for setting in flags.get(name, [])]
            if owners:
                self.problems.append(
                    Problem(
                        self._where(name),
                        f"is an option of the tuner{'s' if len(owners) > 1 else ''} {', '.join(owners)}, but tuner_type is {tuner!r}",
                        f"remove it or add --tuner_type {owners[0]}",
                    )
                )
                continue
            if name in self.cls.elsewhere:
                package = self.cls.elsewhere[name]
                self.problems.append(Problem(self._where(name), "comes with a package that is not installed", f"pip install '{package}'"))
                continue
            known = [*self.cls.settings(), *further]
            aliases = [alias for alias, target in ALIASES.items() if target in known]
            near = list(dict.fromkeys(ALIASES.get(word, word) for word in nearest(name, [*known, *aliases])))
            fix = f"did you mean {' or '.join('--' + word for word in near)}?" if near else f"see `swift {self.cls.command} --help_all`"
            self.problems.append(Problem(self._where(name), "unknown setting", fix))

    def _validate(self, kind: type[Section], values: dict[str, Any]) -> Section | None:
        try:
            return kind(**values)
        except ValidationError as error:
            for detail in error.errors():
                self.problems.append(self._problem(kind, detail))
        return None

    def _problem(self, kind: type[Section], detail: ErrorDetails) -> Problem:
        name = str(detail["loc"][0])
        setting = section_settings(kind, section="")[name]
        given = MASK if setting.secret else repr(detail["input"])
        message = detail["msg"][:1].lower() + detail["msg"][1:]
        what = f"{given} is refused: {message}"
        fix = None
        if setting.choices and detail["type"] != "value_error":
            near = nearest(str(detail["input"]), setting.choices, count=1)
            what = f"{given} is not allowed"
            fix = (f"did you mean {near[0]}? " if near else "") + f"allowed: {', '.join(setting.choices)}"
        return Problem(self._where(name), what, fix)

    def _where(self, name: str) -> str:
        source = self.sources.get(name, "")
        return f"--{name}" if source in ("", "flag") else name if source == "python" else f"{source}: {name}"


__all__ = ["MASK", "CommandConfig", "tuner_flags", "tuner_options_class", "tuner_settings"]
