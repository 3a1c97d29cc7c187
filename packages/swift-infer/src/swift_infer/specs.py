"""What this package registers."""

from __future__ import annotations

from swift_core.specs import CommandSpec, EngineSpec

COMMANDS = (
    CommandSpec(
        name="infer",
        summary="chat with a model or checkpoint in the terminal, or answer a data set",
        target="swift_infer.cli:run_infer",
        config="swift_infer.config:InferConfig",
        install="swift-infer[transformers]",
        group="Inference",
    ),
    CommandSpec(
        name="deploy",
        summary="serve a model or checkpoint over HTTP like the OpenAI API",
        target="swift_infer.cli:run_deploy",
        config="swift_infer.config:DeployConfig",
        install="swift-infer[transformers,serve]",
        group="Inference",
    ),
)

ENGINES = (
    EngineSpec(
        name="transformers",
        summary="transformers' generate with dynamic batching; runs wherever torch does",
        target="swift_infer.engines.transformers:build_engine",
        options="swift_infer.config:EngineConfig",
        requires=("torch", "transformers"),
        install="swift-infer[transformers]",
    ),
)
