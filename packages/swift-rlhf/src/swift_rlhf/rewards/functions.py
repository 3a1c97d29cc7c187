"""Reward functions by name, file or `module:attribute`, and what they are asked with."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any, cast

from swift_core.errors import ConfigError, PluginError, Problem
from swift_core.plugins import load_plugin_files
from swift_core.registry import REWARDS, import_target, nearest

Values = Sequence[float | None]
RewardFunction = Callable[..., Values | Awaitable[Values]]


@dataclass(slots=True, kw_only=True)
class RewardSample:
    """An answer to be rewarded.

    Attributes:
        completion: what the model wrote, without the template's own marks.
        completion_ids: its token ids.
        messages: the whole conversation, the answer included.
        columns: columns of the data row, such as `solution`.
        channel: data set that the row says it belongs to, for rewards that hold for some only.
        finish_reason: `stop`, or `length` when it was cut off.
        origin: `file:line` of the row.
    """

    completion: str
    completion_ids: Sequence[int] = ()
    messages: Sequence[Mapping[str, Any]] = ()
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    channel: str | None = None
    finish_reason: str = "stop"
    origin: str = ""

    @property
    def names(self) -> set[str]:
        """Return the names that its data set goes by: the row's channel, or else the file or data set that it came from."""
        if self.channel is not None:
            return {self.channel}
        source = self.origin.rpartition(":")[0]
        return {source, PurePath(source).name, PurePath(source).stem} if source else set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A reward function and how it is to be asked.

    Attributes:
        name: under which it is logged.
        function: sync or async.
        reference: how a process finds it: a registered name, `file.py:attribute` or `module:attribute`.
        options: settings for those that are classes.
        weight: its part in the sum.
        channels: data sets it holds for; None means all.
        timeout: seconds that a call may take, or None. In a process it is for one sample.
        process: whether it runs in other processes, a sample at a time.
    """

    name: str
    function: RewardFunction
    reference: str = ""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    weight: float = 1.0
    channels: frozenset[str] | None = None
    timeout: float | None = 60.0
    process: bool = False

    def applies(self, sample: RewardSample) -> bool:
        """Return whether the sample's data set has this reward."""
        return self.channels is None or not self.channels.isdisjoint(sample.names)


def make_rewards(
    references: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    channels: Mapping[str, Sequence[str]] | None = None,
    timeout: float | None = 60.0,
) -> list[Reward]:
    """Return the rewards that a run asked for, in order.

    Args:
        references: registered names, `file.py:attribute` or `module:attribute`.
        weights: one for each; all 1 when left out.
        options: settings of the run; a class gets those that its constructor names.
        channels: reference -> data sets it holds for; the others hold for all.
        timeout: seconds that a call may take, or None.

    Raises:
        ConfigError: for weights or channels that do not fit, and names that do not exist; all at once.
    """
    problems: list[Problem] = []
    shares = [1.0] * len(references) if weights is None else list(weights)
    if len(shares) != len(references):
        problems.append(Problem("--reward_weights", f"{len(shares)} weights for {len(references)} rewards", "one weight for each reward"))
    for name in channels or {}:
        if name not in references:
            problems.append(
                Problem("--reward_channels", f"{name!r} is none of the rewards", " or ".join(nearest(name, references)) or None)
            )
    rewards: list[Reward] = []
    names: set[str] = set()
    for reference, weight in zip(references, [*shares, *[1.0] * len(references)], strict=False):
        try:
            reward = _made(reference, weight, options or {}, (channels or {}).get(reference), timeout)
        except ConfigError as error:
            problems.extend(error.problems)
            continue
        except (PluginError, LookupError, TypeError) as error:
            problems.append(Problem("--reward_funcs", f"{reference!r}: {getattr(error, 'message', error)}", getattr(error, "fix", None)))
            continue
        if reward.name in names:
            problems.append(Problem("--reward_funcs", f"two rewards are called {reward.name!r}", "give each once, or rename one"))
        names.add(reward.name)
        rewards.append(reward)
    if problems:
        raise ConfigError(problems)
    return rewards


def _made(reference: str, weight: float, options: Mapping[str, Any], channels: Sequence[str] | None, timeout: float | None) -> Reward:
    process = reference in REWARDS and REWARDS.get(reference).process
    # Made here even when another process will make its own: what is wrong with it should be known before training starts.
    function = load_reward(reference, options)
    name = reference if reference in REWARDS else reference.rpartition(":")[2]
    return Reward(
        name=name,
        function=function,
        reference=reference,
        options=dict(options),
        weight=weight,
        channels=None if channels is None else frozenset(channels),
        timeout=timeout,
        process=process,
    )


def load_reward(reference: str, options: Mapping[str, Any]) -> RewardFunction:
    """Return the function of a reference; a class is made with the options that its constructor names.

    A constructor with a first parameter `args` gets all options in one object.

    Raises:
        RegistryError: for an unknown name.
        PluginError: for a file or module that cannot be imported or lacks the attribute.
        ConfigError: for options that a class needs and the run does not have.
    """
    if reference in REWARDS or ":" not in reference:
        found: Any = REWARDS.load(reference)
    else:
        place, _, attribute = reference.rpartition(":")
        module = load_plugin_files([place])[0] if place.endswith(".py") or Path(place).is_file() else place
        found = import_target(f"{module}:{attribute}", needed_for=f"reward {reference!r}")
    if inspect.isclass(found):
        found = found(**_wanted(found, reference, options))
    if not callable(found):
        raise PluginError(
            f"reward {reference!r} is {type(found).__name__}, which cannot be called", fix="a function or a class of callables"
        )
    return cast(RewardFunction, found)


def _wanted(kind: type, reference: str, options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = list(inspect.signature(kind).parameters.values())
    if parameters and parameters[0].name == "args" and parameters[0].kind is not parameters[0].VAR_POSITIONAL:
        return {"args": SimpleNamespace(**options)}
    named = [each for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
    missing = [each.name for each in named if each.default is each.empty and options.get(each.name) is None]
    if missing:
        raise ConfigError([Problem(f"--{name}", f"the reward {reference!r} needs it", f"set --{name}") for name in missing])
    return {each.name: options[each.name] for each in named if options.get(each.name) is not None}


def columns_for(function: Any, name: str, samples: Sequence[RewardSample]) -> dict[str, list[Any]]:
    """Return the keyword arguments of a call: columns of the rows, and what is known of the answers.

    A row without a column has None there. Besides the columns of the data there are `messages`, `completion_ids`,
    `finish_reasons`, `channels` and `origins`. A function without `**columns` gets those that it names.

    Raises:
        ConfigError: when it names a column that no row has.
    """
    table: dict[str, list[Any]] = {key: [] for sample in samples for key in sample.columns}
    for key, values in table.items():
        values.extend(sample.columns.get(key) for sample in samples)
    table |= {
        "messages": [list(sample.messages) for sample in samples],
        "completion_ids": [list(sample.completion_ids) for sample in samples],
        "finish_reasons": [sample.finish_reason for sample in samples],
        "channels": [sample.channel for sample in samples],
        "origins": [sample.origin for sample in samples],
    }
    table.pop("completions", None)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = [each for each in parameters if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
    missing = [each.name for each in named if each.default is each.empty and each.name not in table]
    if missing:
        known = ", ".join(sorted(table))
        raise ConfigError(
            [
                Problem(f"reward {name!r}", f"it asks for the column {column!r}, which no row has", f"columns are: {known}")
                for column in missing
            ]
        )
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return table
    return {each.name: table[each.name] for each in named if each.name in table}
