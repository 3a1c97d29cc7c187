"""Write down the names that the engines over SGLang and LMDeploy rely on, as the wheels of the locked versions have them.

Reads source text only: the wheels need not be importable here.

    pip download --no-deps --python-version 3.12 --only-binary=:all: -d DIR sglang==0.5.23 lmdeploy==0.18.0
    python tools/record_signatures.py DIR/*.whl > packages/swift-infer/tests/engine_signatures.json
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile

# Name in the table -> file in the wheel, and class or function with its parameters or fields.
WANTED = {
    "sglang": {
        "Engine.async_generate": "sglang/srt/entrypoints/engine.py",
        "Engine.async_load_lora_adapter": "sglang/srt/entrypoints/engine.py",
        "Engine.async_unload_lora_adapter": "sglang/srt/entrypoints/engine.py",
        "Engine.update_weights_from_disk": "sglang/srt/entrypoints/engine.py",
        "Engine.shutdown": "sglang/srt/entrypoints/engine.py",
        "ServerArgs": "sglang/srt/arg_groups/fields/",
        "SamplingParams": "sglang/srt/sampling/sampling_params.py",
        "TokenizerManager.abort_request": "sglang/srt/managers/tokenizer_manager.py",
    },
    "lmdeploy": {
        "pipeline": "lmdeploy/api.py",
        "PytorchEngineConfig": "lmdeploy/messages.py",
        "GenerationConfig": "lmdeploy/messages.py",
        "AsyncEngine.preprocess": "lmdeploy/serve/core/async_engine.py",
        "AsyncEngine.generate": "lmdeploy/serve/core/async_engine.py",
        "GenOut": "lmdeploy/serve/core/async_engine.py",
        "Pipeline.session": "lmdeploy/pipeline.py",
        "Pipeline.close": "lmdeploy/pipeline.py",
    },
}


def names_of(tree: ast.AST, wanted: str) -> list[str]:
    """Return the parameters of a function or the fields of a class; empty where there is none of that name."""
    body: list[ast.stmt] = list(getattr(tree, "body", []))
    node: ast.AST | None = None
    for part in wanted.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        node = next((one for one in body if isinstance(one, kinds) and one.name == part), None)
        if node is None:
            return []
        body = list(node.body)
    if isinstance(node, ast.ClassDef):
        fields = [one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)]
        return [*fields, *names_of(tree, f"{wanted}.__init__")]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return [one.arg for one in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs] if one.arg != "self"] or ["(none)"]


def _read(archive: zipfile.ZipFile, name: str, place: str) -> list[str]:
    if not place.endswith("/"):
        return names_of(ast.parse(archive.read(place)), name)
    # Classes all over a folder make up one: their fields together.
    files = [file for file in archive.namelist() if file.startswith(place) and file.endswith(".py")]
    classes = [node for file in files for node in ast.parse(archive.read(file)).body if isinstance(node, ast.ClassDef)]
    return sorted(
        {one.target.id for node in classes for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    )


def main(wheels: list[str]) -> None:
    """Print the table of some wheels."""
    table: dict[str, dict[str, object]] = {}
    for wheel in wheels:
        library, version = wheel.rpartition("/")[2].split("-")[:2]
        with zipfile.ZipFile(wheel) as archive:
            found = {name: _read(archive, name, place) for name, place in WANTED[library].items()}
        table[library] = {"version": version, **found}
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
