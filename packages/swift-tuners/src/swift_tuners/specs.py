"""What swift-tuners registers. A further method is one file in `methods`, its options in `config.py` and one row here."""

from __future__ import annotations

from swift_core.specs import CallbackSpec, CommandSpec, ExportSpec, FusionSpec, OptimizerSpec, TunerSpec


def _layered(
    name: str, summary: str, options: str, *, target: str = "", quantised: bool = False, aliases: tuple[str, ...] = ()
) -> TunerSpec:
    return TunerSpec(
        name=name,
        aliases=aliases,
        summary=summary,
        target=f"swift_tuners.methods.layered:{target or name}",
        options=f"swift_tuners.options:{options}Options",
        mergeable=True,
        quantised=quantised,
        several=True,
    )


def _in_front(name: str, summary: str, target: str, options: str, *, checkpointing: bool = True) -> TunerSpec:
    return TunerSpec(
        name=name,
        summary=summary,
        target=f"swift_tuners.methods.virtual_tokens:{target}",
        options=f"swift_tuners.options:{options}",
        quantised=True,
        several=True,
        checkpointing=checkpointing,
    )


TUNERS = (
    TunerSpec(
        name="lora",
        summary="low-rank matrices beside frozen weights: LoRA, QLoRA, rsLoRA, DoRA, LoRA+, PiSSA, OLoRA, LoftQ, LoRA-GA, EVA",
        target="swift_tuners.methods.lora:LoraTuner",
        options="swift_tuners.lora_options:LoraOptions",
        loaded_options=("lorap_lr_ratio", "lorap_emb_lr"),
        half_base=True,
        mergeable=True,
        quantised=True,
        several=True,
        parameters=True,
    ),
    TunerSpec(
        name="lora_llm",
        summary="LoRA on the language model of a multimodal model, its towers and aligner in full",
        target="swift_tuners.methods.lora_llm:LoraLlmTuner",
        options="swift_tuners.lora_options:LoraLlmOptions",
        mergeable=True,
        parameters=True,
    ),
    TunerSpec(
        name="longlora",
        summary="LoRA for long samples: attention within groups while training, embedding and norms trained",
        target="swift_tuners.methods.longlora:LongLoraTuner",
        options="swift_tuners.lora_options:LongLoraOptions",
        mergeable=True,
        quantised=True,
        several=True,
        parameters=True,
    ),
    TunerSpec(
        name="adalora",
        summary="LoRA whose ranks move to the layers that need them",
        target="swift_tuners.methods.adalora:AdaLoraTuner",
        options="swift_tuners.lora_options:AdaLoraOptions",
        mergeable=True,
        quantised=True,
        several=True,
    ),
    TunerSpec(
        name="llamapro",
        summary="new layers between those of the model, the only ones trained; a checkpoint is a whole model",
        target="swift_tuners.methods.llamapro:LlamaProTuner",
        options="swift_tuners.options:LlamaProOptions",
        mergeable=True,
    ),
    _layered("ia3", "trained scales of attention outputs and feed-forward inputs", "Ia3", target="Ia3Tuner", quantised=True),
    _layered("vera", "trained vectors around random matrices that all layers share", "Vera"),
    _layered("boft", "rotations of weights by butterfly products", "Boft"),
    _layered("oft", "rotations of weights by blocks", "Oft", quantised=True),
    _layered("fourierft", "a few trained Fourier coefficients of each update", "FourierFt"),
    _layered("miss", "one small trained block for all parts of a weight (MiSS, before that Bone)", "Miss", aliases=("bone",)),
    TunerSpec(
        name="adapter",
        summary="bottleneck networks behind the feed-forward parts",
        target="swift_tuners.methods.bottleneck:BottleneckTuner",
        options="swift_tuners.options:BottleneckOptions",
        quantised=True,
    ),
    TunerSpec(
        name="reft",
        summary="low-rank changes of hidden states at the first and last tokens of the prompt",
        target="swift_tuners.methods.reft:ReftTuner",
        options="swift_tuners.options:ReftOptions",
        quantised=True,
    ),
    _in_front("prompt_tuning", "trained tokens in front of the input", "PromptTuner", "PromptTuningOptions"),
    _in_front(
        "prefix_tuning",
        "trained keys and values in front of the input, in every layer",
        "PrefixTuner",
        "PrefixTuningOptions",
        checkpointing=False,
    ),
    _in_front("p_tuning", "a trained network that makes tokens in front of the input", "PTuner", "PTuningOptions"),
)

COMMANDS = (
    CommandSpec(
        name="merge-lora",
        summary="fold an adapter into its base model and check that the answers stay the same",
        target="swift_tuners.cli:merge_lora",
        config="swift_tuners.config:MergeConfig",
        group="Adapters",
    ),
)

EXPORTS = (
    ExportSpec(
        name="peft",
        summary="write a checkpoint of ms-swift as a plain PEFT adapter",
        target="swift_tuners.merge.actions:to_peft",
        options="swift_tuners.merge_options:PeftActionSection",
        order=10,
        produces="adapter",
    ),
    ExportSpec(
        name="merge",
        summary="fold an adapter into its base model and check that the answers stay the same",
        target="swift_tuners.merge.actions:merge_adapter",
        options="swift_tuners.merge_options:MergeActionSection",
        order=20,
        produces="model",
    ),
)


def _bnb(name: str, summary: str, states: float) -> OptimizerSpec:
    return OptimizerSpec(
        name=name,
        summary=summary,
        target="swift_tuners.optimizers.bnb:make",
        requires=("bitsandbytes",),
        install="swift-tuners[bnb]",
        states=states,
        paged=name.startswith("paged_"),
    )


def _projecting(name: str, summary: str, target: str, *, states: float = 2.0, install: str | None = None) -> OptimizerSpec:
    return OptimizerSpec(
        name=name,
        summary=summary,
        target=f"swift_tuners.optimizers.{target}",
        requires=("bitsandbytes",) if install else (),
        install=install,
        states=states,
        family=name.partition("_")[0],
        full_only=True,
        projects=True,
    )


def _schedule_free(name: str, summary: str, states: float) -> OptimizerSpec:
    return OptimizerSpec(
        name=f"schedule_free_{name}",
        summary=summary,
        target=f"swift_tuners.optimizers.schedule_free:{name}",
        requires=("schedulefree",),
        install="swift-tuners[schedulefree]",
        states=states,
        # They average weights in place of a falling rate.
        schedules=("constant", "constant_with_warmup"),
    )


OPTIMIZERS = (
    _projecting("galore_adamw", "GaLore: AdamW on low-rank projections of the gradients", "galore:galore_adamw"),
    _projecting("galore_adamw_8bit", "GaLore with 8-bit state", "galore:galore_adamw_8bit", states=0.5, install="swift-tuners[bnb]"),
    _projecting("galore_adafactor", "GaLore around Adafactor", "galore:galore_adafactor", states=0.01),
    _projecting("apollo_adamw", "APOLLO: gradients scaled as AdamW would, told from a random projection", "apollo:apollo_adamw"),
    _projecting("apollo_mini", "APOLLO with a projection to one row", "apollo:apollo_mini"),
    OptimizerSpec(
        name="muon",
        summary="Muon for the matrices of layers, AdamW for the rest",
        target="swift_tuners.optimizers.muon:muon",
        states=1.0,
        full_only=True,
    ),
    OptimizerSpec(name="lion", summary="the sign of an average of gradients", target="swift_tuners.optimizers.lion:lion", states=1.0),
    _bnb("adamw_8bit", "AdamW with 8-bit state (bitsandbytes)", 0.5),
    _bnb("paged_adamw_8bit", "8-bit AdamW whose state moves to main memory when the GPU is full", 0.5),
    _bnb("paged_adamw_32bit", "AdamW whose state moves to main memory when the GPU is full", 2.0),
    _bnb("lion_8bit", "Lion with 8-bit state (bitsandbytes)", 0.25),
    _bnb("paged_lion_8bit", "8-bit Lion whose state moves to main memory when the GPU is full", 0.25),
    _bnb("paged_lion_32bit", "Lion whose state moves to main memory when the GPU is full", 1.0),
    _bnb("ademamix", "AdamW with a second, slower average (bitsandbytes)", 3.0),
    _bnb("ademamix_8bit", "AdEMAMix with 8-bit state", 0.75),
    _bnb("paged_ademamix_8bit", "8-bit AdEMAMix whose state moves to main memory when the GPU is full", 0.75),
    _bnb("paged_ademamix_32bit", "AdEMAMix whose state moves to main memory when the GPU is full", 3.0),
    _bnb("rmsprop_8bit", "RMSprop with 8-bit state (bitsandbytes)", 0.25),
    _schedule_free("adamw", "AdamW that averages weights instead of lowering the rate", 2.0),
    _schedule_free("radam", "schedule-free RAdam, without warm-up", 2.0),
    _schedule_free("sgd", "schedule-free SGD", 1.0),
)

CALLBACKS = (
    CallbackSpec(
        name="lisa",
        summary="trains a few layers at a time; --lisa_activated_layers switches it on",
        target="swift_tuners.optimizers.lisa:LisaCallback",
    ),
)

FUSIONS = (
    FusionSpec(
        name="lora_linear",
        summary="linear layer and its low-rank update in one function",
        target="swift_tuners.methods.lora_linear:LoraLinearFusion",
    ),
)
