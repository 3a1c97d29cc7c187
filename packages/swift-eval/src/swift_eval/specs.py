"""What swift-eval adds to the command line."""

from __future__ import annotations

from swift_core.specs import CommandSpec

COMMANDS = (
    CommandSpec(
        name="eval",
        summary="score a model behind an OpenAI-compatible endpoint on benchmarks or your own data",
        target="swift_eval.cli:run",
        config="swift_eval.config:EvalConfig",
        group="Evaluation",
    ),
)
