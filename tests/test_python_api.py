"""The Python way, as the README shows it: load, adapt, train, save, load again, answer."""

from __future__ import annotations

from pathlib import Path

import torch
from swift_core import Seq2SeqTrainer, Seq2SeqTrainingArguments, SftConfig, get_model_tokenizer, sft_main
from swift_core.testing.tiny import make_tiny_model
from swift_infer import InferRequest, RequestConfig, TransformersEngine
from swift_tuners import LoraConfig, Swift

ROWS = [
    {"messages": [{"role": "user", "content": f"What is {number} plus one?"}, {"role": "assistant", "content": f"It is {number + 1}."}]}
    for number in range(12)
]


def test_load_adapt_train_save_and_load_again(tmp_path: Path) -> None:
    model_path = make_tiny_model(tmp_path / "model")
    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path / "run"), learning_rate=1e-2, num_train_epochs=2, per_device_train_batch_size=4,
        gradient_accumulation_steps=1, logging_steps=1, report_to=["none"], use_cpu=True, add_version=False,
    )  # fmt: skip

    model, tokenizer = get_model_tokenizer(model_path)
    model = Swift.prepare_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trainer = Seq2SeqTrainer(model=model, args=args, train_dataset=ROWS, eval_dataset=ROWS[:2], tokenizer=tokenizer)
    before = trainer.evaluate()["eval_loss"]
    output = trainer.train()

    assert output.global_step == 6
    assert trainer.evaluate()["eval_loss"] < before
    assert output.last_checkpoint is not None
    base, _ = get_model_tokenizer(model_path)
    again = Swift.from_pretrained(base, output.last_checkpoint)
    ids = torch.tensor([[5, 6, 7, 8]])
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_config_in_answer_out(tmp_path: Path) -> None:
    model_path = make_tiny_model(tmp_path / "model")
    result = sft_main(
        SftConfig(
            model=str(model_path),
            dataset=["self-cognition#16"],
            max_steps=2,
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            report_to=["none"],
        )
    )
    assert result.last_checkpoint is not None
    engine = TransformersEngine(model_path, adapters=[result.last_checkpoint], use_cpu=True)
    request = InferRequest(messages=[{"role": "user", "content": "Who are you?"}])
    response = engine.infer([request], RequestConfig(max_tokens=4, temperature=0))[0]
    assert isinstance(response.choices[0].message.content, str)
    assert response.usage.completion_tokens <= 4
