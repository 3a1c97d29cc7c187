"""What a folder is taken for, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from swift_core.cards.models import families
from swift_core.errors import ModelError
from swift_core.models.detection import FolderFacts, _rules, detect, detect_folder, read_facts


def config(architecture: str | None, **more: Any) -> dict[str, Any]:
    return {"architectures": [architecture] if architecture else None, **more}


CASES: list[tuple[str, dict[str, Any], FolderFacts, str]] = [
    ("llama", config("LlamaForCausalLM", vocab_size=32000), FolderFacts(), "llama"),
    ("yi by vocabulary", config("LlamaForCausalLM", vocab_size=64000), FolderFacts(name="my-model"), "yi"),
    ("qwen3", config("Qwen3ForCausalLM"), FolderFacts(name="sft"), "qwen3"),
    ("qwen3 embedding", config("Qwen3ForCausalLM"), FolderFacts(modules=("Transformer", "Pooling")), "qwen3_emb"),
    ("qwen3 reranker", config("Qwen3ForCausalLM"), FolderFacts(name="my-reranker"), "qwen3_reranker"),
    ("glm-4v", config("ChatGLMModel", vision_config={"image_size": 1120}, padded_vocab_size=151552), FolderFacts(), "chatglm4v"),
    ("glm-4", config("ChatGLMModel", padded_vocab_size=151552), FolderFacts(), "chatglm4"),
    ("chatglm3", config("ChatGLMModel", padded_vocab_size=65024), FolderFacts(chat_template="{{ message['role'] }}"), "chatglm3"),
    ("chatglm2", config("ChatGLMModel", padded_vocab_size=65024), FolderFacts(), "chatglm2"),
    ("qwen-vl", config("QWenLMHeadModel", visual={"image_size": 448}), FolderFacts(), "qwen_vl"),
    ("baichuan 2", config("BaichuanForCausalLM", vocab_size=125696), FolderFacts(), "baichuan2"),
    ("minicpm-v 2.6", config("MiniCPMV", version=2.6), FolderFacts(), "minicpmv2_6"),
    ("minicpm-v 4.5", config("MiniCPMV", version="4.5"), FolderFacts(), "minicpmv4_5"),
    ("minicpm-v 2.5", config("MiniCPMV", vocab_size=128256), FolderFacts(), "minicpmv2_5"),
    ("pixtral", config("LlavaForConditionalGeneration", vision_config={"model_type": "pixtral"}), FolderFacts(), "pixtral"),
    ("llava 1.5", config("LlavaForConditionalGeneration", text_config={"vocab_size": 32064}), FolderFacts(), "llava1_5_hf"),
    (
        "llava next mistral",
        config("LlavaNextForConditionalGeneration", text_config={"model_type": "mistral"}),
        FolderFacts(),
        "llava1_6_mistral_hf",
    ),
    ("mistral nemo", config("MistralForCausalLM", vocab_size=131072, intermediate_size=14336), FolderFacts(), "mistral_nemo"),
    ("mistral small", config("MistralForCausalLM", vocab_size=131072, intermediate_size=32768), FolderFacts(), "mistral_2501"),
    ("mistral", config("MistralForCausalLM", vocab_size=32000), FolderFacts(), "mistral"),
    ("phi-4", config("Phi3ForCausalLM", vocab_size=100352), FolderFacts(), "phi4"),
    ("deepseek-vl2, no class", config(None, model_type="deepseek_vl_v2"), FolderFacts(), "deepseek_vl2"),
    ("bert, class not listed", config("BertModel", model_type="bert"), FolderFacts(), "bert"),
]


@pytest.mark.parametrize(("content", "files", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_family(content: dict[str, Any], files: FolderFacts, expected: str) -> None:
    detected = detect(content, files=files)
    assert detected.model_type == expected
    assert detected.known
    assert detected.reasons


def test_every_ambiguous_class_has_rules_that_always_end() -> None:
    known = families()
    by_class: dict[str, set[str]] = {}
    for family in known.values():
        for name in family.architectures or ("",):
            by_class.setdefault(name, set()).add(family.model_type)
    ambiguous = {name: types for name, types in by_class.items() if len(types) > 1}
    ruled: dict[str, set[str]] = {}
    last: dict[str, str] = {}
    for rule in _rules():
        ruled.setdefault(rule.architecture, set()).add(rule.model_type)
        last[rule.architecture] = rule.pattern
    assert len(ambiguous) == 34
    assert ruled == ambiguous
    assert {name for name, pattern in last.items() if pattern} == {""}
    for name in ambiguous:
        if name:
            assert detect(config(name)).model_type in ambiguous[name]


def test_unambiguous_classes_lead_to_their_family() -> None:
    known = families()
    for family in known.values():
        for name in family.architectures:
            if sum(name in other.architectures for other in known.values()) == 1:
                detected = detect(config(name, id2label={"0": "LABEL_0"}))
                assert (detected.model_type, detected.task_type, detected.multimodal) == (
                    family.model_type,
                    family.task_type,
                    family.multimodal,
                )


def test_name_of_a_known_checkpoint_decides_when_the_class_agrees() -> None:
    facts = FolderFacts(name="qwen3-reranker-0.6b")
    detected = detect(config("Qwen3ForCausalLM"), files=facts)
    assert (detected.model_type, detected.task_type, detected.template) == ("qwen3_reranker", "generative_reranker", "qwen3_reranker")
    assert detect(config("LlamaForCausalLM"), files=facts).model_type == "llama"


def test_unknown_class_works_without_registration() -> None:
    text = detect(config("RobinForCausalLM", model_type="robin"), files=FolderFacts(chat_template="{{ messages }}"))
    assert (text.model_type, text.kind, text.task_type, text.known, text.template, text.own_template) == (
        "robin",
        "llm",
        "causal_lm",
        False,
        "",
        True,
    )
    assert detect(config("RobinForConditionalGeneration", vision_config={"depth": 2})).kind == "mllm"


@pytest.mark.parametrize(
    ("architecture", "modules", "task"),
    [
        ("RobinForSequenceClassification", (), "seq_cls"),
        ("RobinForRewardModel", (), "reward"),
        ("RobinForProcessRewardModel", (), "prm"),
        ("RobinModel", (), "embedding"),
        ("RobinForCausalLM", ("Transformer", "Pooling"), "embedding"),
        ("LlamaForCausalLM", ("Transformer", "Pooling"), "embedding"),
        ("RobinForCausalLM", (), "causal_lm"),
    ],
)
def test_task(architecture: str, modules: tuple[str, ...], task: str) -> None:
    assert detect(config(architecture), files=FolderFacts(modules=modules)).task_type == task


@pytest.mark.parametrize(
    ("more", "task"),
    [
        ({"id2label": {"0": "LABEL_0"}}, "reward"),
        ({"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}, "seq_cls"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "seq_cls"),
        ({}, "seq_cls"),
    ],
)
def test_reward_models_are_told_from_classifiers_by_their_labels(more: dict[str, Any], task: str) -> None:
    assert detect(config("LlamaForSequenceClassification", model_type="llama", **more)).task_type == task


def test_own_chat_template_wins_over_the_named_one() -> None:
    assert detect(config("InternLM2ForCausalLM")).template == "internlm2"
    assert detect(config("InternLM2ForCausalLM"), files=FolderFacts(chat_template="{{ messages }}")).template == ""
    several = detect(config("LlamaForCausalLM"))
    assert several.template == ""
    assert "llama3" in several.reasons[-1]


def test_model_type_is_obeyed_or_refused() -> None:
    detected = detect(config("LlamaForCausalLM", vocab_size=32000), model_type="yi")
    assert (detected.model_type, detected.reasons) == ("yi", ("--model_type yi", *detected.reasons[1:]))
    with pytest.raises(ModelError, match="did you mean llama"):
        detect(config("LlamaForCausalLM"), model_type="lama")
    with pytest.raises(ModelError, match="Qwen2ForCausalLM, not LlamaForCausalLM"):
        detect(config("LlamaForCausalLM"), model_type="qwen2")


def test_folder_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    quantised = {"quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **quantised}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", "chat_template": "{{ messages }}"}))
    (folder / "modules.json").write_text("not json")
    facts = read_facts(folder)
    assert (facts.name, facts.tokenizer_class, facts.chat_template, facts.modules) == ("Qwen3-0.6B", "Qwen2Tokenizer", "{{ messages }}", ())
    detected = detect_folder(folder)
    assert (detected.model_type, detected.quant, detected.reasons) == ("qwen3", "gptq", ("called like Qwen3-0.6B",))
    (folder / "chat_template.jinja").write_text("{{ other }}")
    assert read_facts(folder).chat_template == "{{ other }}"
