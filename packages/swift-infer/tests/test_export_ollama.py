"""`swift export --to_ollama`: the Modelfile, and Go templates against the chat templates they come from."""

import pytest
from swift_core.config.export import ExportConfig
from swift_core.config.sections import TemplateSection
from swift_core.errors import ConfigError, TemplateError
from swift_core.tasks.exporting import export
from swift_core.templates.chat import build_template
from swift_core.testing.tiny import make_tiny_model, make_tiny_tokenizer
from swift_infer.export.go_template import check_go, find_pieces, run_go, write_go

CHAT = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]


def rendering(**chat):
    template = build_template(make_tiny_tokenizer(), TemplateSection(**chat))
    return lambda messages, prompt: template.render(messages, add_generation_prompt=prompt)


@pytest.mark.parametrize("name", ["chatml", "qwen", "qwen2_5", "llama3", "gemma", "mistral_nemo", "phi3"])
def test_known_families_are_said_in_go(name):
    render = rendering(template=name)
    pieces = find_pieces(render, bos="")
    go = write_go(pieces, with_start=True)
    assert check_go(go, render, start="", default_system=pieces.default_system) >= 3
    brought = [{"role": "system", "content": pieces.default_system}] if pieces.default_system else []
    assert run_go(go, [*brought, CHAT[1]]) == render(CHAT[1:], True)


def test_a_default_system_message_and_one_folded_into_the_question_are_found():
    assert find_pieces(rendering(template="qwen2_5"), bos="").default_system.startswith("You are Qwen")
    folded = find_pieces(rendering(template="mistral_nemo"), bos="")
    assert folded.system is None and folded.folded is not None
    assert run_go(write_go(folded, with_start=True), CHAT) == "[INST] S\n\nU[/INST]"


def test_a_bos_token_that_opens_every_turn_is_not_taken_for_a_start():
    assert find_pieces(rendering(template="qwen2_5"), bos="<|im_start|>").start == ""
    assert find_pieces(rendering(template="chatml"), bos="<|im_start|>").start == ""


def test_a_go_template_that_says_something_else_is_refused():
    render = rendering(template="chatml")
    go = write_go(find_pieces(render, bos=""), with_start=True)
    with pytest.raises(TemplateError, match="cannot say what this chat template does"):
        check_go(go.replace("<|im_end|>\n{{ end }}", "<|im_end|>{{ end }}"), render, start="")


@pytest.mark.parametrize(
    "jinja",
    [
        "{% for m in messages %}{{ loop.index }} {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ '{{' + m['role'] + '}}' + m['content'] + '<|im_end|>' }}{% endfor %}",
    ],
)
def test_templates_that_are_not_made_of_pieces_are_refused(jinja):
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = jinja
    template = build_template(tokenizer, TemplateSection())

    def render(messages, prompt):
        return template.render(messages, add_generation_prompt=prompt)

    with pytest.raises(TemplateError) as error:
        check_go(write_go(find_pieces(render, bos=""), with_start=True), render, start="")
    assert "--template" in str(error.value.fix)


def test_modelfile_has_format_system_stop_words_and_sampling(tmp_path):
    model = make_tiny_model(tmp_path / "model", layers=1)
    (model / "generation_config.json").write_text('{"temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1}')
    folder = export(ExportConfig(model=str(model), to_ollama=True, system="Be brief.", max_length=256)).folders["ollama"]
    text = (folder / "Modelfile").read_text()
    assert text.startswith(f'FROM {model}\nTEMPLATE """{{{{ range $i, $m := .Messages }}}}')
    assert 'SYSTEM """Be brief."""' in text and 'PARAMETER stop "<|im_end|>"' in text
    for line in ("temperature 0.2", "top_p 0.9", "repeat_penalty 1.1", "num_ctx 256"):
        assert f"PARAMETER {line}\n" in text


def test_with_gguf_the_folder_holds_all_that_ollama_needs(tmp_path):
    model = make_tiny_model(tmp_path / "model", layers=1)
    context = export(ExportConfig(model=str(model), to_gguf="f16", to_ollama=True, output_dir=str(tmp_path / "out")))
    folder = context.folders["ollama"]
    assert "FROM ./model-F16.gguf\n" in (folder / "Modelfile").read_text()
    assert (folder / "model-F16.gguf").stat().st_size == (context.folders["gguf"] / "model-F16.gguf").stat().st_size


def test_a_modelfile_with_a_path_of_this_machine_is_not_uploaded():
    with pytest.raises(ConfigError, match=r"--to_gguf q8_0"):
        ExportConfig(model="m", to_ollama=True, push_to_hub=True, hub_model_id="a/b")
