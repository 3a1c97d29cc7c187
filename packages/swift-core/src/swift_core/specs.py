"""What a registry entry says about the thing it names, without importing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A registry entry.

    Attributes:
        name: how users write it.
        summary: one line for lists and help.
        target: `module:attribute`, imported at first use only.
        install: what to `pip install` when the target's library is absent.
        requires: import names that must be present for the target to work.
        source: who registered it; filled in at registration.
    """

    name: str
    summary: str
    target: str
    install: str | None = None
    requires: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec(Spec):
    """A subcommand of `swift`.

    Attributes:
        config: `module:Class` of its pydantic config, or None for a command that parses its own words.
        group: heading under which `swift --help` lists it.
        dry_run: `module:function` that `--dry_run` calls with the config, where the command has one.
        distributed: whether `NPROC_PER_NODE` starts one worker per device.
        aliases: other names.

    `target` is called with the config, or with the list of remaining words where there is no config; it returns None or
    an exit code.
    """

    config: str | None = None
    dry_run: str | None = None
    group: str = "Other"
    distributed: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TunerSpec(Spec):
    """A way to adapt a model; `target` is a `Tuner` (see `swift_core.protocols`).

    Attributes:
        options: `module:Class` of the pydantic model with this tuner's flags.
        mergeable: whether its weights can be folded into the base model.
        quantised: whether it trains over quantised weights.
        several: whether one model can hold several of its adapters.
        checkpointing: whether it trains with gradient checkpointing.
        parameters: whether `target_parameters` can put it on bare weights, such as those of experts.
        half_base: whether the weights beside its own may be in half precision, since its own are kept in float32.
        loaded_options: flags that act on an adapter given by `--adapters` too; its folder says the others.
        aliases: other names.
    """

    options: str | None = None
    loaded_options: tuple[str, ...] = ()
    mergeable: bool = False
    quantised: bool = False
    several: bool = False
    checkpointing: bool = True
    parameters: bool = False
    half_base: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSpec(Spec):
    """An action of `swift export`; `target` is a function of an `ExportContext` and an empty folder to fill.

    Attributes:
        options: `module:Class` of its settings, an `ActionSection`.
        order: actions of one command run from low to high.
        produces: `adapter` or `model`, with which later actions go on; `final`, a model that later actions only upload; `files`,
            which are uploaded beside a model; or `nothing`, for an action that gets no folder.
    """

    options: str
    order: int
    produces: Literal["adapter", "model", "final", "files", "nothing"] = "files"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec(Spec):
    """An optimizer of `--optim`; `target` is a factory that takes a `swift_core.train.optim.Request`.

    Attributes:
        states: numbers it keeps for each trained parameter, for the memory estimate.
        family: prefix of the flags that only it reads, such as `galore`, or empty.
        full_only: whether it makes sense only where whole weights are trained.
        schedules: values of `--lr_scheduler_type` that fit; empty: all.
        paged: whether it moves its state between GPU and main memory, which needs a GPU.
        projects: whether it keeps its state for a projection of the gradients, by `<family>_rank`.
    """

    states: float = 2.0
    family: str = ""
    full_only: bool = False
    schedules: tuple[str, ...] = ()
    paged: bool = False
    projects: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec(Spec):
    """An inference engine; `target` is a factory that takes an engine config."""

    options: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec(Spec):
    """A training task; `target` is a function that takes the config and trains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackSpec(Spec):
    """A trainer callback; `target` is a `transformers.TrainerCallback` class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionSpec(Spec):
    """A layer computed in fewer passes; `target` is a `swift_core.fusions.install.Fusion` class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec(Spec):
    """A reward for online RL: `target` is a function, or a class whose objects are called, `reward(completions, **columns)`.

    Attributes:
        process: whether it runs in processes of its own, a sample at a time: for work that keeps a core busy or may hang.
    """

    process: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSpec(Spec):
    """Who plays the other side of conversations in online RL; `target` is a class whose constructor names the settings it wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentSpec(Spec):
    """A world that answers acts with observations and rewards; `target` is a class with `reset`, `step` and `close`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec(Spec):
    """A known checkpoint.

    Attributes:
        model_type: family name.
        hf_id: id on Hugging Face, or empty.
        ms_id: id on ModelScope, or empty.
        template: name of its prompt format in the template table.
        architectures: class names as `config.json` gives them.
        kind: `llm`, `mllm`, `embedding`, `reranker` or `reward`.
        task_type: what it is loaded for when no task is set.
        multimodal: whether it takes images, videos or sound.
        model_arch: name of its module paths in `model_archs.tsv`, or empty.
        agent_template: how tools are written for it, or empty.
        quant: how its weights are packed, such as `awq`, or empty.
        needs: libraries as pip takes them, such as `transformers>=4.51`, that its files or its own code ask for.
        tags: what it is made for.
        loader: `module:function` that loads it instead of transformers' Auto classes, called with folder, section and dtype.
        modules: dotted paths of its `language_model`, `aligner`, `vision_tower`, `generator`, `embedding`, `layers` and
            `lm_head`, where `model_archs.tsv` has no row for them.
    """

    target: str = "swift_core.models.loading:get_model_tokenizer"
    model_type: str = ""
    hf_id: str = ""
    ms_id: str = ""
    template: str = ""
    architectures: tuple[str, ...] = ()
    kind: str = "llm"
    task_type: str = "causal_lm"
    multimodal: bool = False
    model_arch: str = ""
    agent_template: str = ""
    quant: str = ""
    needs: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    loader: str = ""
    modules: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec(Spec):
    """A known data set.

    A `target` other than the default is a `swift_core.data.locate.RowMaker`: it makes the rows itself.

    Attributes:
        hf_id: id on Hugging Face, or empty.
        ms_id: id on ModelScope, or empty.
        path: file or folder on this machine, used instead of a hub, or empty.
        subsets: names of its subsets.
        hub_subsets: subset -> its name on the hub, where that differs.
        weak_subsets: subsets that `:all` leaves out.
        views: subsets that are another subset reworked by code, which a table cannot do: listed, not loadable.
        split: splits that are joined for training.
        columns: renaming applied before a format is detected.
        turn_names: keys and roles inside turns that are called differently -> `role`, `content`, `user`, `assistant`, ...
        obstacle: why it cannot be read, for those who ask for it, or empty.
        task: derived label such as `sft` or `dpo`.
    """

    target: str = "swift_core.data.sources:load_dataset"
    hf_id: str = ""
    ms_id: str = ""
    path: str = ""
    subsets: tuple[str, ...] = ()
    hub_subsets: dict[str, str] = field(default_factory=dict[str, str])
    weak_subsets: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    split: tuple[str, ...] = ("train",)
    columns: dict[str, str] = field(default_factory=dict[str, str])
    turn_names: dict[str, str] = field(default_factory=dict[str, str])
    obstacle: str = ""
    task: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSpec(Spec):
    """A named prompt format for base models, as a Jinja chat template with `{% generation %}` marks.

    Attributes:
        jinja: the template text.
        stop_words: texts that end a turn besides the eos token.
        auto_bos: whether the bos token comes first where the tokenizer puts one before plain text.
        default_system: system message that the format itself puts before conversations without one.
        agent: agent format that writes tools and calls for models of this format.
        thinks: whether answers open with thoughts.
        hybrid: whether such a model can also be told not to think.
    """

    target: str = "swift_core.templates.chat:ChatTemplate"
    jinja: str = ""
    stop_words: tuple[str, ...] = ()
    auto_bos: bool = False
    default_system: str | None = None
    agent: str | None = None
    thinks: bool = False
    hybrid: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec(Spec):
    """A way to write tools into prompts and to read calls out of answers; `target` is an `AgentFormat`."""


HubName = Literal["hf", "ms", "pypi", "local"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSpec(Spec):
    """A place that models and data sets come from; `target` is a `Hub` factory."""
