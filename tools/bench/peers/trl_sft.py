"""TRL's side of `sft_speed.py`: MODEL DATA OUT."""

from __future__ import annotations

import sys

from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

model, data, out = sys.argv[1:4]
rows = load_dataset("json", data_files=data, split="train")
rows = rows.map(lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}, remove_columns=["messages"])
settings = SFTConfig(
    output_dir=out,
    per_device_train_batch_size=4,
    gradient_accumulation_steps=4,
    num_train_epochs=1,
    learning_rate=1e-4,
    logging_steps=1,
    max_length=1024,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
)
lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear")
trainer = SFTTrainer(
    model=model, args=settings, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(model), peft_config=lora
)
print(trainer.train().metrics, flush=True)
