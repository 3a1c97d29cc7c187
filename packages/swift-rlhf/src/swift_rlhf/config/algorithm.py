"""What follows from `--rlhf_type`: defaults, and which settings make sense."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from swift_core.config.fields import Setting
from swift_core.errors import Problem
from swift_core.registry import TASKS, import_target, nearest

from swift_rlhf.specs import RlhfSpec


def algorithm_of(config: Any) -> RlhfSpec | None:
    """Return the algorithm that a config asks for, or None for an unknown one."""
    spec = TASKS.get(config.task.rlhf_type) if config.task.rlhf_type in TASKS else None
    return spec if isinstance(spec, RlhfSpec) else None


def fill_algorithm(config: Any) -> None:
    """Fill the defaults that depend on the algorithm."""
    spec = algorithm_of(config)
    if spec is None:
        return
    if config.task.beta is None and spec.beta is not None:
        config.derive("beta", spec.beta, f"derived: usual for {spec.name}")
    for name, value in spec.loads_as.items():
        if not config.given(name):
            config.derive(name, value, f"derived: what {spec.name} makes")
    if not config.task.loss_type and spec.loss_types:
        config.derive("loss_type", [spec.loss_types[0]], f"derived: default of {spec.name}")
    if spec.best_metric != config.saving.metric_for_best_model and not config.given("metric_for_best_model"):
        config.derive("metric_for_best_model", spec.best_metric, f"derived: usual for {spec.name}")


def algorithm_problems(config: Any, sections: Collection[str]) -> list[Problem]:
    """Return settings of alignment that cannot work together.

    Args:
        config: the settings.
        sections: fields of the config that belong to algorithms.
    """
    spec = algorithm_of(config)
    if spec is None:
        known = [each.name for each in TASKS if isinstance(each, RlhfSpec)]
        near = nearest(config.task.rlhf_type, known) or known
        return [Problem(f"--rlhf_type {config.task.rlhf_type}", "is not known", f"one of {', '.join(near)}")]
    problems: list[Problem] = []
    settings = cast(dict[str, Setting], config.settings())
    for name, setting in settings.items():
        if setting.section in sections and setting.section not in spec.sections and config.given(name):
            problems.append(Problem(f"--{name}", f"has no effect with --rlhf_type {spec.name}", "remove it"))
    if config.given("beta") and spec.beta is None:
        problems.append(Problem("--beta", f"has no effect with --rlhf_type {spec.name}", "remove it"))
    problems += _loss_problems(config, spec)
    if spec.check is not None:
        problems += import_target(spec.check, needed_for=f"--rlhf_type {spec.name}")(config)
    return problems


def _loss_problems(config: Any, spec: RlhfSpec) -> list[Problem]:
    problems: list[Problem] = []
    for name in config.task.loss_type:
        if name not in spec.loss_types:
            allowed = ", ".join(nearest(name, spec.loss_types) or spec.loss_types)
            fix = f"one of {allowed}" if allowed else "remove it"
            problems.append(Problem(f"--loss_type {name}", f"is no loss of --rlhf_type {spec.name}", fix))
    if len(config.task.loss_type) > 1 and not spec.several_losses:
        problems.append(Problem("--loss_type", f"{spec.name} takes one", f"--loss_type {config.task.loss_type[0]}"))
    return problems
