"""Keys in pages and draws of many rows, beside plain forward passes and plain softmax."""

import random

import pytest
import torch
from swift_core.decoding.decoder import Decoder, decoding_model, obstacle
from swift_core.decoding.drawing import Drawing, Edits, draw, logprobs_of
from swift_core.decoding.pages import PAGE, Pool
from swift_core.testing.tiny import make_tiny_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return AutoModelForCausalLM.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("m") / "tiny")).eval()


def gemma():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma2Config(vocab_size=500, head_dim=8, sliding_window=9, query_pre_attn_scalar=8, attn_implementation="eager", **sizes)
    return Gemma2ForCausalLM(config).eval()


def plain(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_rows_that_come_and_go_equal_plain_passes(model, kind):
    # Prompts of less and more than a page, several rows of one prompt, a window and capped scores (Gemma 2).
    model = model if kind == "llama" else gemma()
    drawn, decoder, rows, worst = random.Random(0), Decoder(model), [], 0.0

    def some(count):
        return [drawn.randrange(3, 500) for _ in range(count)]

    for step in range(30):
        with decoding_model(model):
            if step % 8 == 0:
                prompts, copies = [some(drawn.randint(1, 90)) for _ in range(2)], [1, drawn.randint(1, 3)]
                logits, every = decoder.add(prompts, copies, every=True)
                fresh = [list(prompt) for prompt, count in zip(prompts, copies, strict=True) for _ in range(count)]
                assert every.shape[0] == sum(map(len, prompts)) and logits.shape[0] == len(fresh)
                rows += fresh
            tokens = some(len(rows))
            found = decoder.step(torch.tensor(tokens))
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)
        if step % 5 == 3:
            expected = torch.stack([plain(model, row) for row in rows])
            worst = max(worst, float((found - expected).abs().max()))
        if step % 6 == 5:
            kept = [number for number in range(len(rows)) if drawn.random() < 0.6]
            decoder.keep(kept)
            rows = [rows[number] for number in kept]
    assert worst < 1e-5 and len(decoder) == len(rows)
    decoder.keep([])
    assert decoder.tokens == 0


def test_an_obstacle_is_seen_before_it_spoils_answers(model):
    assert obstacle(model, [5, 6, 7, 8, 9]) is None
    layer = model.model.layers[0]
    before = layer.forward

    def leaky(hidden, *args, **kwargs):
        return before(hidden + hidden.mean(1, keepdim=True), *args, **kwargs)  # every token sees the whole row

    layer.forward = leaky
    try:
        assert "differ" in (obstacle(model, [5, 6, 7, 8, 9]) or "")
    finally:
        layer.forward = before


def test_pages_close_gaps():
    pool = Pool()
    key = torch.arange(3.0)[:, None, None, None].expand(3, 1, 1, 2)
    assert pool.take(6) == list(range(6))
    keys, values = pool.layer(0, key, key)
    for page in range(6):
        keys[page], values[page] = page, page
    moved = pool.give_back([1, 4])
    keys, values = pool.layer(0, key, key)
    assert moved == {5: 1} and pool.count == 4
    assert keys[:, 0, 0, 0].tolist() == [0, 5, 2, 3] and values[:, 0, 0, 0].tolist() == [0, 5, 2, 3]
    assert keys.shape == (4, 1, 2, PAGE)


@pytest.mark.parametrize(
    "drawing",
    [
        Drawing(),
        Drawing(temperature=0.5),
        Drawing(top_k=3),
        Drawing(top_p=0.6),
        Drawing(min_p=0.3),
        Drawing(temperature=2.0, top_k=5, top_p=0.8),
    ],
)
def test_draws_follow_the_distribution(drawing):
    torch.manual_seed(0)
    logits = torch.randn(1, 600)
    logits[0, :6] += 5
    warped = logits / drawing.temperature
    if drawing.top_k:
        warped = TopKLogitsWarper(drawing.top_k)(torch.zeros(1, 1), warped)
    if drawing.min_p:
        warped = warped.masked_fill(warped.softmax(-1) < drawing.min_p * warped.softmax(-1).max(), -torch.inf)
    if drawing.top_p < 1:
        warped = TopPLogitsWarper(drawing.top_p)(torch.zeros(1, 1), warped)
    count = 20_000
    tokens, told = draw(logits.expand(count, -1).contiguous(), (torch.arange(count) + 0.5) / count, [drawing] * count)
    shares = torch.bincount(tokens, minlength=600) / count
    assert torch.allclose(shares, warped.softmax(-1)[0], atol=2e-4)
    assert torch.allclose(logprobs_of(told[:5], tokens[:5]), warped.log_softmax(-1)[0][tokens[:5]], atol=1e-5)


def test_each_row_is_drawn_in_its_own_way():
    torch.manual_seed(0)
    logits, uniform = torch.randn(4, 300), torch.rand(4)
    ways = [Drawing(temperature=0), Drawing(temperature=0.7, top_p=0.9), Drawing(top_k=4), Drawing(temperature=1.3)]
    together, _ = draw(logits, uniform, ways)
    alone = [int(draw(logits[row : row + 1], uniform[row : row + 1], [way])[0]) for row, way in enumerate(ways)]
    assert together.tolist() == alone and alone[0] == int(logits[0].argmax())


def test_penalties_and_biases():
    torch.manual_seed(0)
    prompt, logits = [3, 4, 4], torch.randn(20)
    theirs = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3)])(torch.tensor([[*prompt, 7]]), logits[None].clone())[0]
    edits = Edits(Drawing(repetition_penalty=1.3), prompt, 20, torch.device("cpu"))
    edits.push(7)
    ours = logits.clone()
    edits.apply(ours)
    assert torch.allclose(ours, theirs)
    edits = Edits(Drawing(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={2: 3.0}), prompt, 20, torch.device("cpu"))
    for token in (7, 7, 8):
        edits.push(token)
    ours = logits.clone()
    edits.apply(ours)
    change = ours - logits
    assert torch.allclose(change[[7, 8, 2, 3]], torch.tensor([-1.0, -0.75, 3.0, 0.0]), atol=1e-6)
