"""`swift export --to_ollama`: a Modelfile that prompts the model as its chat template does."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from swift_core.config.training import short_name
from swift_core.errors import CheckpointError, TemplateError
from swift_core.models.loading import load_tokenizer
from swift_core.protocols import Message
from swift_core.tasks.export_context import ExportContext, ExportResult
from swift_core.templates.chat import ChatTemplate, build_template, leading_bos

from swift_infer.export.go_template import check_go, find_pieces, write_go

MODELFILE = "Modelfile"
# generation_config.json -> Modelfile.
_PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


def write_modelfile(context: ExportContext, folder: Path) -> ExportResult:
    """Write a Modelfile for the GGUF file of the plan, or for the model's folder.

    Raises:
        TemplateError: when an Ollama template cannot say what the chat template does.
    """
    source = context.model_folder()
    tokenizer = load_tokenizer(source, trust_remote_code=context.config.loading.trust_remote_code)
    chat = context.chat()
    template = build_template(tokenizer, chat.model_copy(update={"system": None}))
    bos: Any = tokenizer.bos_token
    pieces = find_pieces(_rendering(template), bos=bos or "")
    adds_bos = bool(leading_bos(tokenizer)) and pieces.start.startswith(bos or "\0")
    go = write_go(pieces, with_start=not adds_bos)
    compared = check_go(go, _rendering(template), start=pieces.start if adds_bos else "", default_system=pieces.default_system)
    # Read by the template's own rules: a .txt file names the text.
    system = build_template(tokenizer, chat).system or pieces.default_system
    weights = _weights(context, source, folder)
    parameters = [*_sampling(source), *(("stop", json.dumps(word, ensure_ascii=False)) for word in template.stop_words)]
    if chat.max_length:
        parameters.append(("num_ctx", str(chat.max_length)))
    lines = [f"FROM {weights}", f'TEMPLATE """{go}"""']
    if system:
        if '"""' in system:
            raise TemplateError('the system message holds """, which a Modelfile cannot quote', fix="give another --system")
        lines.append(f'SYSTEM """{system}"""')
    lines += [f"PARAMETER {name} {value}" for name, value in parameters]
    (folder / MODELFILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    name = short_name(str(context.adapter or context.config.loading.model or "model")).lower()
    return ExportResult(
        method="Modelfile for Ollama",
        metrics={"conversations rendered as the chat template does": compared},
        lines=[
            f"prompt format         the same as the chat template's in {compared} conversations",
            f"stop words            {' '.join(template.stop_words)}",
            f"try it: ollama create {name} -f {context.target or folder}/{MODELFILE} && ollama run {name}",
        ],
        usage=["{download}", f"ollama create {name} -f {MODELFILE}", f"ollama run {name}"],
    )


def _rendering(template: ChatTemplate) -> Any:
    def render(messages: list[Message], prompt: bool) -> str:
        return template.render(messages, add_generation_prompt=prompt)

    return render


def _weights(context: ExportContext, source: Path, folder: Path) -> str:
    made = context.folders.get("gguf")
    if made is None:
        return str(source.resolve())
    files = sorted(made.glob("*.gguf"))
    if not files:
        raise CheckpointError(f"{str(made)!r} holds no .gguf file", fix="run the export again with --exist_ok true")
    try:
        os.link(files[0], folder / files[0].name)
    except OSError:  # a file system without links
        shutil.copyfile(files[0], folder / files[0].name)
    return f"./{files[0].name}"


def _sampling(source: Path) -> list[tuple[str, str]]:
    file = source / "generation_config.json"
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if settings.get("do_sample") is False:
        return [("temperature", "0")]
    return [(name, str(settings[key])) for key, name in _PARAMETERS.items() if settings.get(key) is not None]
