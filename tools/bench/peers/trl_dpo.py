"""TRL's side of `dpo_speed.py`: MODEL DATA OUT."""

from __future__ import annotations

import sys

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

model, data, out = sys.argv[1:4]
rows = load_dataset("json", data_files=data, split="train")
rows = rows.map(
    lambda row: {
        "prompt": row["messages"][:-1],
        "chosen": row["messages"][-1:],
        "rejected": [{"role": "assistant", "content": row["rejected_response"]}],
    },
    remove_columns=rows.column_names,
)
settings = DPOConfig(
    output_dir=out,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=4,
    num_train_epochs=1,
    learning_rate=1e-5,
    beta=0.1,
    logging_steps=1,
    max_length=512,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
)
lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear")
trainer = DPOTrainer(
    model=model, args=settings, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(model), peft_config=lora
)
print(trainer.train().metrics, flush=True)
