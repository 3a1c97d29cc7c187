"""Tiny multimodal models learn, answer alike alone and in batches, and packed; ranks with and without media stay in step."""

from __future__ import annotations

import copy
import json
import pickle
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from swift_core.batching.collate import collate
from swift_core.batching.media import merge_model_inputs, packed_position_ids, with_dummy_media
from swift_core.config.sections import ModelSection, TemplateSection
from swift_core.config.training import SftConfig
from swift_core.errors import DataError
from swift_core.models.loading import load_model, load_processor
from swift_core.protocols import EncodedSample, Message, Sample
from swift_core.tasks.sft import train
from swift_core.templates.media import ProcessorTemplate, build_processor_template
from swift_core.testing.tiny_multimodal import AUDIO_KINDS, available_kinds, make_picture, make_tiny_multimodal

KINDS = available_kinds()


@pytest.fixture
def folder(media_models: Path) -> Path:
    return media_models


@cache
def built(kind: str, folder: Path) -> tuple[Any, ProcessorTemplate]:
    """Return model and template; tests share them, and one that trains takes a copy of the model."""
    if not (folder / kind).is_dir():
        make_tiny_multimodal(kind, folder / kind)
    template: Any = build_processor_template(load_processor(folder / kind, trust_remote_code=False), TemplateSection())
    model = load_model(ModelSection(model=str(folder / kind)), folder / kind, dtype=torch.float32)
    return model, template


def media_of(kind: str, folder: Path, count: int) -> tuple[str, dict[str, list[Any]]]:
    if kind in AUDIO_KINDS:
        wave = torch.sin(torch.arange(4000) / 7).numpy()
        return "<audio>" * count, {"audios": [{"array": wave[: 2000 * (number + 1)], "sampling_rate": 16000} for number in range(count)]}
    colors = ((200, 30, 30), (30, 30, 200))
    pictures = [str(make_picture(folder, f"{number}.png", color=colors[number], size=(48 + 20 * number, 40))) for number in range(count)]
    return "<image>" * count, {"images": pictures}


def encoded_rows(kind: str, folder: Path, template: ProcessorTemplate) -> list[EncodedSample]:
    rows: list[EncodedSample] = []
    for count, question, answer in (
        (1, "Who is it?", "A red square."),
        (0, "Hello", "Good day to you."),
        (2, "And both?", "Red and blue."),
    ):
        tags, media = media_of(kind, folder, count)
        messages = [Message(role="user", content=tags + question), Message(role="assistant", content=answer)]
        rows.append(template.encode(Sample(messages, **media)))
    return rows


def run(model: Any, samples: list[EncodedSample]) -> Any:
    batch = collate(samples, pad_token_id=0)
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        use_cache=False,
        **merge_model_inputs(samples),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_learns_rows_with_and_without_media_and_answers(kind: str, folder: Path) -> None:
    shared, template = built(kind, folder)
    model = copy.deepcopy(shared)
    rows = encoded_rows(kind, folder, template)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses: list[float] = []
    for _ in range(20):
        loss = run(model, rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    media_parts = [name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0]
    assert any("visual" in name or "vision" in name or "audio" in name for name in media_parts)
    tags, media = media_of(kind, folder, 1)
    prompts = [
        template.encode_media_prompt(Sample([Message(role="user", content=tags + "Who is it?")], **media)),
        template.encode_media_prompt(Sample([Message(role="user", content="Hello")])),
    ]
    width = max(map(len, prompts))
    ids = torch.tensor([[template.tokenizer.pad_token_id] * (width - len(prompt)) + prompt.input_ids for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.eval()
    answers = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        pad_token_id=template.tokenizer.pad_token_id,
        **merge_model_inputs(prompts, pad_left=True),
    )
    assert answers.shape == (2, width + 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_scores_the_same_alone_in_a_batch_and_packed(kind: str, folder: Path) -> None:
    model, template = built(kind, folder)
    rows = encoded_rows(kind, folder, template)
    model.eval()
    with torch.no_grad():
        together = run(model, rows).logits
        packed = model(
            input_ids=torch.tensor([[id_ for row in rows for id_ in row.input_ids]]),
            position_ids=packed_position_ids(model, rows),
            use_cache=False,
            **merge_model_inputs(rows, packed=True),
        ).logits[0]
        start = 0
        for index, row in enumerate(rows):
            alone = run(model, [row]).logits[0]
            torch.testing.assert_close(together[index, : len(row)], alone, rtol=0, atol=1e-5)
            torch.testing.assert_close(packed[start : start + len(row)], alone, rtol=0, atol=1e-5)
            start += len(row)


@pytest.mark.parametrize("kind", KINDS)
def test_dummy_media_change_no_loss_and_reach_every_parameter(kind: str, folder: Path) -> None:
    model, template = built(kind, folder)
    text = encoded_rows(kind, folder, template)[1]
    dummy = template.dummy()
    assert dummy.trained_tokens == 0
    assert len(dummy) < 80
    model.zero_grad(set_to_none=True)
    run(model, encoded_rows(kind, folder, template)).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    plain = run(model, [text]).loss
    plain.backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} < reached
    alone = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    filled = with_dummy_media([text], dummy)
    loss = run(model, filled).loss
    loss.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(gradients) == reached
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, alone.get(name, torch.zeros_like(gradient)), rtol=1e-4, atol=1e-6)
    assert with_dummy_media(filled, dummy) == filled


def _run_rank(rank: int, folder: str, port: int, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for kind in kinds:
        print(kind, flush=True)
        _train_on_ranks(rank, folder, kind)
    torch.distributed.destroy_process_group()


def _train_on_ranks(rank: int, folder: str, kind: str) -> None:
    model, template = built(kind, Path(folder))
    # Pictures of its own: what the other rank is writing anew cannot be read.
    rows = encoded_rows(kind, Path(folder) / f"rank{rank}", template)
    dummy = template.dummy()
    wrapped = torch.nn.parallel.DistributedDataParallel(model.train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # Each step mixes them differently: picture and text, text and picture, text alone on both, pictures on both.
    for one, other in ((0, 1), (1, 2), (1, 1), (0, 2)):
        loss = run(wrapped, with_dummy_media([rows[other if rank else one]], dummy)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    both = [torch.empty_like(flat) for _ in range(2)]
    torch.distributed.all_gather(both, flat)
    assert torch.equal(both[0], both[1])
    assert torch.isfinite(flat).all()


@pytest.mark.e2e
def test_two_ranks_mix_text_and_media_without_waiting_for_ever(folder: Path) -> None:
    kinds = [kind for kind in ("mistral3", "qwen2_audio", "gemma3") if kind in KINDS]
    for kind in kinds:
        built(kind, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder), str(port), *kinds],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)


def test_swift_sft_trains_rows_with_pictures(folder: Path, tmp_path: Path) -> None:
    built("gemma3", folder)
    make_picture(tmp_path / "pictures", "a.png")
    rows = [
        {
            "messages": [{"role": "user", "content": f"<image>Who is number {number}?"}, {"role": "assistant", "content": "A red square."}],
            "images": ["pictures/a.png"],
        }
        for number in range(5)
    ]
    rows.append({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]})
    rows.append({**rows[0], "images": ["pictures/missing.png"]})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = SftConfig(
        model=str(folder / "gemma3"),
        dataset=[str(tmp_path / "rows.json")],
        on_bad_row="skip",
        tuner_type="full",
        learning_rate=5e-3,
        max_steps=8,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=1,
        logging_steps=1,
        max_pixels=1000,
        output_dir=str(tmp_path / "run"),
        add_version=False,
        use_cpu=True,
        report_to=["none"],
        disable_tqdm=True,
    )
    config.finish()
    output = train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "logging.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 0.3
    saved = json.loads((output.last_checkpoint / "args.json").read_text()) if output.last_checkpoint else {}
    assert saved["max_pixels"] == 1000


def test_a_processor_template_goes_to_other_processes(folder: Path) -> None:
    _, template = built("gemma3", folder)
    copied = pickle.loads(pickle.dumps(template))
    rows = encoded_rows("gemma3", folder, template)
    assert [row.input_ids for row in encoded_rows("gemma3", folder, copied)] == [row.input_ids for row in rows]


def made(ids: int, **inputs: torch.Tensor) -> EncodedSample:
    return EncodedSample([1] * ids, [-100] * ids, origin=f"row:{ids}", model_inputs=dict(inputs) or None)


def test_inputs_are_joined_along_media_and_padded_elsewhere() -> None:
    samples = [
        made(3, pixel_values=torch.ones(1, 2, 3), mm_token_type_ids=torch.tensor([0, 1, 0])),
        made(2),
        made(4, pixel_values=torch.ones(2, 4, 2), mm_token_type_ids=torch.tensor([1, 1, 0, 0])),
    ]
    merged = merge_model_inputs(samples)
    assert merged["pixel_values"].shape == (3, 4, 3)
    assert merged["pixel_values"].sum(dim=(1, 2)).tolist() == [6, 8, 8]
    assert merged["mm_token_type_ids"].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert merge_model_inputs(samples, pad_left=True)["mm_token_type_ids"].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert merge_model_inputs(samples, packed=True)["mm_token_type_ids"].tolist() == [[0, 1, 0, 0, 0, 1, 1, 0, 0]]
    assert merge_model_inputs([made(2)]) == {}


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(DataError, match="different kinds of 'pixel_values'"):
        merge_model_inputs([made(3, pixel_values=torch.ones(1, 2)), made(4, pixel_values=torch.ones(1, 2, 2))])
    videos = [made(3, pixel_values_videos=torch.ones(1, frames, 3, 2, 2)) for frames in (2, 4)]
    with pytest.raises(DataError, match="2 and 4 frames"):
        merge_model_inputs(videos)


if __name__ == "__main__":
    _run_rank(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
