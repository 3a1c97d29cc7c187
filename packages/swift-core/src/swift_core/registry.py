"""One registry class; entries are light specs, targets are imported at first use."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Generic, TypeVar

from swift_core.errors import MissingDependencyError, PluginError, RegistryError
from swift_core.specs import (
    AgentSpec,
    CallbackSpec,
    CommandSpec,
    DatasetSpec,
    EngineSpec,
    EnvironmentSpec,
    ExportSpec,
    FusionSpec,
    HubSpec,
    ModelSpec,
    OptimizerSpec,
    RewardSpec,
    SchedulerSpec,
    Spec,
    TaskSpec,
    TemplateSpec,
    TunerSpec,
)

S = TypeVar("S", bound=Spec)
TABLE = "swift-core table"
"""Source of the entries that come from a data file of swift."""


class Registry(Generic[S]):
    """Names and their specs, filled from entry points of the group `swift.<name>` on first look-up.

    Args:
        name: plural name, such as `tuners`.
        kind: spec class of the entries.
        packages: entry name -> package to install, for names known but not present.
        table: `module:function` that yields the specs of a data file, called when a name is first asked for.
    """

    def __init__(
        self,
        name: str,
        kind: type[S],
        *,
        packages: dict[str, str] | None = None,
        table: str | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self._packages = packages or {}
        self._table = table
        self._specs: dict[str, S] = {}
        self._aliases: dict[str, str] = {}
        self._discovered = False

    def register(self, spec: S, *, source: str = "python", override: bool = False) -> None:
        """Add an entry.

        Raises:
            RegistryError: when the name is taken and `override` is false; both sources are named.
        """
        if not isinstance(spec, self.kind):
            raise RegistryError(f"{self.name} holds {self.kind.__name__}, not {type(spec).__name__} ({spec.name!r} from {source})")
        names = (spec.name, *getattr(spec, "aliases", ()))
        for name in names:
            taken = self._specs.get(self._aliases.get(name, name))
            if taken is not None and not override:
                raise RegistryError(
                    f"{name!r} is registered twice in {self.name}: by {taken.source} and by {source}",
                    fix="rename one of them or uninstall one package",
                )
        self._specs[spec.name] = replace(spec, source=source)
        self._aliases.update({alias: spec.name for alias in names[1:]})

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        from swift_core.plugins import entry_specs

        if self._table is not None:
            for spec in import_target(self._table, needed_for=f"the table of {self.name}")():
                self._specs.setdefault(spec.name, replace(spec, source=TABLE))
        for source, spec in entry_specs(self.name):
            self.register(spec, source=source)

    def names(self) -> list[str]:
        """Return all names in order of registration."""
        self._discover()
        return list(self._specs)

    def __iter__(self) -> Iterator[S]:
        self._discover()
        return iter(list(self._specs.values()))

    def __contains__(self, name: object) -> bool:
        self._discover()
        return name in self._specs or name in self._aliases

    def get(self, name: str) -> S:
        """Return the spec of a name or alias.

        Raises:
            RegistryError: for an unknown name, with the nearest names or the package to install.
        """
        self._discover()
        spec = self._specs.get(self._aliases.get(name, name))
        if spec is None:
            raise RegistryError(f"unknown {self.name} entry {name!r}", fix=self._advice(name))
        return spec

    def absent(self) -> dict[str, str]:
        """Return names that are known but come with a package that is not installed, with that package."""
        self._discover()
        return {name: package for name, package in self._packages.items() if name not in self}

    def _advice(self, name: str) -> str:
        if name in self._packages:
            return f"pip install '{self._packages[name]}'"
        near = nearest(name, [*self._specs, *self._aliases])
        return f"did you mean {' or '.join(near)}?" if near else f"see `swift list {self.name}`"

    def load(self, name: str) -> Any:
        """Import and return the target of a name.

        Raises:
            RegistryError: for an unknown name.
            MissingDependencyError: when a library it needs is absent.
            PluginError: when its module cannot be imported.
        """
        spec = self.get(name)
        for library in spec.requires:
            if importlib.util.find_spec(library) is None:
                raise MissingDependencyError(library, needed_for=f"{self.name} entry {name!r}", install=spec.install or library)
        return import_target(spec.target, needed_for=f"{self.name} entry {name!r}", install=spec.install)


def nearest(name: str, choices: Iterable[str], *, count: int = 3) -> list[str]:
    """Return the choices most like `name`, best first, comparing without case, dashes and underscores."""
    plain = {choice.lower().replace("-", "_"): choice for choice in choices}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=count, cutoff=0.6)
    return [plain[key] for key in close]


def import_target(target: str, *, needed_for: str, install: str | None = None) -> Any:
    """Import `module:attribute`.

    Raises:
        MissingDependencyError: when a module is absent and `install` says what to install.
        PluginError: for any other import failure.
    """
    module_name, _, attribute = target.partition(":")
    if not attribute:
        raise PluginError(f"{needed_for}: {target!r} is not of the form 'module:attribute'")
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if install is None:
            raise PluginError(f"{needed_for}: cannot import {module_name!r}: {error}") from error
        raise MissingDependencyError(error.name or module_name, needed_for=needed_for, install=install) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise PluginError(f"{needed_for}: {module_name!r} has no attribute {attribute!r}")
        value = getattr(value, part)
    return value


COMMANDS = Registry(
    "commands",
    CommandSpec,
    packages={
        "rlhf": "swift-rlhf",
        "infer": "swift-infer[transformers]",
        "deploy": "swift-infer[transformers,serve]",
        "rollout": "swift-infer[transformers,serve]",
        "sample": "swift-infer[transformers]",
        "merge-lora": "swift-tuners",
        "eval": "swift-eval",
        "web-ui": "swift-ui",
    },
)
MODELS = Registry("models", ModelSpec, table="swift_core.cards.models:read_models")
DATASETS = Registry("datasets", DatasetSpec, table="swift_core.cards.datasets:read_datasets")
TEMPLATES = Registry("templates", TemplateSpec, table="swift_core.cards.templates:read_templates")
AGENT_TEMPLATES = Registry("agent_templates", AgentSpec, table="swift_core.cards.agents:read_agents")
TUNERS = Registry(
    "tuners",
    TunerSpec,
    packages=dict.fromkeys(
        (
            *("lora", "lora_llm", "longlora", "adalora", "llamapro", "ia3", "vera", "boft", "oft", "fourierft", "miss", "bone"),
            *("adapter", "reft", "prompt_tuning", "prefix_tuning", "p_tuning"),
        ),
        "swift-tuners",
    ),
)
OPTIMIZERS = Registry(
    "optimizers",
    OptimizerSpec,
    packages=dict.fromkeys(
        (
            *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw", "apollo_mini", "muon", "lion"),
            *("adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "schedule_free_adamw"),
        ),
        "swift-tuners",
    ),
    table="swift_core.builtin:optimizers",
)
TASKS = Registry("tasks", TaskSpec)
ENGINES = Registry(
    "engines",
    EngineSpec,
    packages={
        "transformers": "swift-infer[transformers]",
        "vllm": "swift-infer[vllm]",
        "sglang": "swift-infer[sglang]",
        "lmdeploy": "swift-infer[lmdeploy]",
        "client": "swift-infer[client]",
    },
)
EXPORTS = Registry(
    "exports",
    ExportSpec,
    packages={
        "merge": "swift-tuners",
        "peft": "swift-tuners",
        "quantize": "swift-infer[quant]",
        "gguf": "swift-infer[transformers]",
        "ollama": "swift-infer[transformers]",
    },
    table="swift_core.builtin:exports",
)
CALLBACKS = Registry("callbacks", CallbackSpec, packages={"lisa": "swift-tuners"})
FUSIONS = Registry("fusions", FusionSpec, table="swift_core.builtin:fusions")
REWARDS = Registry("rewards", RewardSpec)
SCHEDULERS = Registry("schedulers", SchedulerSpec)
ENVIRONMENTS = Registry("environments", EnvironmentSpec)
HUBS = Registry("hubs", HubSpec)

REGISTRIES: dict[str, Registry[Any]] = {
    registry.name: registry
    for registry in (
        COMMANDS,
        MODELS,
        DATASETS,
        TEMPLATES,
        AGENT_TEMPLATES,
        TUNERS,
        OPTIMIZERS,
        TASKS,
        ENGINES,
        EXPORTS,
        CALLBACKS,
        FUSIONS,
        REWARDS,
        SCHEDULERS,
        ENVIRONMENTS,
        HUBS,
    )
}
