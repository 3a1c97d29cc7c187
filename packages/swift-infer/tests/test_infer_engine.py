"""The transformers engine with a tiny random model."""

import asyncio
from contextlib import aclosing

import pytest
import torch
from swift_core.errors import EngineError, RequestError
from swift_core.protocols import Engine
from swift_core.testing.tiny import make_tiny_model
from swift_infer import InferRequest, RequestConfig, TransformersEngine
from swift_infer.engines.sampling import resolve_drawing
from transformers import GenerationConfig

QUESTIONS = ["Who are you?", "你好", "What is the capital of France? Tell me in one short sentence, please.", "a"]
GREEDY = RequestConfig(max_tokens=12, temperature=0)


def ask(text):
    return InferRequest([{"role": "user", "content": text}])


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    engine = TransformersEngine(folder, use_cpu=True, max_batch_size=3)
    yield engine
    engine.close()


def texts(responses):
    return [[choice.message.content for choice in response.choices] for response in responses]


def test_it_is_an_engine(engine):
    assert (engine.name, engine.model_name, engine.context_length) == ("transformers", "tiny", 512)
    assert isinstance(engine, Engine)


@pytest.mark.parametrize(
    "config",
    [
        GREEDY,
        RequestConfig(max_tokens=12, temperature=0, repetition_penalty=1.5),
        RequestConfig(max_tokens=12, temperature=1.0, top_p=0.9, top_k=40, seed=3, n=2),
    ],
)
def test_an_answer_does_not_depend_on_its_neighbours(engine, config):
    together = engine.infer([ask(text) for text in QUESTIONS], config)
    alone = [engine.infer([ask(text)], config)[0] for text in QUESTIONS]
    assert texts(together) == texts(alone)
    assert [response.usage for response in together] == [response.usage for response in alone]


def test_greedy_tokens_are_those_of_the_plain_loop(engine):
    ids = engine.prompt_ids(ask(QUESTIONS[0]))
    row = torch.tensor([ids])
    for _ in range(6):
        row = torch.cat([row, engine.model(row).logits[:, -1].argmax(-1, keepdim=True)], 1)
    found = engine.infer([ask(QUESTIONS[0])], RequestConfig(max_tokens=6, temperature=0))[0].choices[0]
    assert found.token_ids == row[0, len(ids) :].tolist()


@pytest.mark.parametrize("text", QUESTIONS)
def test_stream_gives_the_same_text_and_usage(engine, text):
    whole = engine.infer([ask(text)], GREEDY)[0]
    deltas = list(engine.stream(ask(text), GREEDY))
    assert "".join(delta.text for delta in deltas) == whole.choices[0].message.content
    assert deltas[-1].usage == whole.usage
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == [whole.choices[0].finish_reason]


def test_answers_to_one_request_differ_and_repeat_with_the_seed(engine):
    config = RequestConfig(max_tokens=10, temperature=1.0, seed=11, n=3)
    first, again = (engine.infer([ask("a")], config)[0] for _ in range(2))
    assert texts([first]) == texts([again])
    assert len({tuple(choice.token_ids) for choice in first.choices}) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage.completion_tokens == sum(len(choice.token_ids) for choice in first.choices)
    other = engine.infer([ask("a")], RequestConfig(max_tokens=10, temperature=1.0, seed=12, n=3))[0]
    assert texts([other]) != texts([first])


def test_sampling_leaves_the_global_generator_alone(engine):
    before = torch.get_rng_state()
    engine.infer([ask("a")], RequestConfig(max_tokens=4, temperature=1.0))
    assert torch.equal(before, torch.get_rng_state())


def test_length_and_stop_reasons(engine):
    cut = engine.infer([ask("a")], RequestConfig(max_tokens=5, temperature=0))[0]
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 5
    text = cut.choices[0].message.content
    stopped = engine.infer([ask("a")], RequestConfig(max_tokens=5, temperature=0, stop=[text[1:3]]))[0]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[: text.find(text[1:3])]


def test_a_stop_token_ends_the_answer_and_gives_no_text(engine):
    free = engine.infer([ask("a")], GREEDY)[0].choices[0]
    ending = free.token_ids[3]
    before = engine.template.stop_token_ids
    engine.template.stop_token_ids = [*before, ending]
    try:
        found = engine.infer([ask("a"), ask(QUESTIONS[2])], GREEDY)[0].choices[0]
    finally:
        engine.template.stop_token_ids = before
    first = free.token_ids.index(ending)
    assert (found.finish_reason, found.token_ids) == ("stop", free.token_ids[: first + 1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_without_room_is_refused_with_numbers(engine, stream):
    request = ask("word " * 600)
    with pytest.raises(RequestError, match="512") as caught:
        list(engine.stream(request)) if stream else engine.infer([request])
    assert caught.value.code == "context_length_exceeded"


def test_an_answer_ends_where_the_context_is_full(engine):
    prompt = len(engine.prompt_ids(ask("a")))
    text = "a" * 1
    while len(engine.prompt_ids(ask(text))) < engine.context_length - 3:
        text += " a"
    room = engine.context_length - len(engine.prompt_ids(ask(text)))
    response = engine.infer([ask(text)], RequestConfig(max_tokens=400, temperature=0))[0]
    assert prompt < response.usage.prompt_tokens
    assert response.usage.completion_tokens <= room
    assert response.choices[0].finish_reason == "length"


@pytest.mark.parametrize("config", [RequestConfig(max_tokens=0), RequestConfig(n=0)])
def test_senseless_counts_are_refused(engine, config):
    with pytest.raises(RequestError):
        engine.infer([ask("a")], config)


def test_unknown_adapter_is_refused(engine):
    with pytest.raises(RequestError, match="other"):
        engine.infer([InferRequest([{"role": "user", "content": "a"}], adapter="other")])


def test_closing_the_stream_stops_the_generation(engine):
    stream = engine.stream(ask("a"), RequestConfig(max_tokens=480, temperature=1.0, seed=1))
    next(stream)
    stream.close()
    engine.scheduler.call(lambda: None)  # a step later
    assert (engine.scheduler.running, engine.scheduler.waiting) == (0, 0)


def test_async_streams_take_turns_and_can_be_left(engine):
    async def whole(text):
        return "".join([delta.text async for delta in engine.astream(ask(text), GREEDY)])

    async def left():
        stream = engine.astream(ask("a"), RequestConfig(max_tokens=480, temperature=1.0, seed=1))
        async with aclosing(stream):
            async for _ in stream:
                return

    async def main():
        return await asyncio.gather(*(whole(text) for text in QUESTIONS), left())

    found = asyncio.run(main())
    assert found[:-1] == [answers[0] for answers in texts(engine.infer([ask(text) for text in QUESTIONS], GREEDY))]


def test_a_closed_engine_says_so(tmp_path):
    engine = TransformersEngine(make_tiny_model(tmp_path / "m"), use_cpu=True)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer([ask("a")])


@pytest.mark.parametrize(
    ("request_config", "own", "temperature", "top_k"),
    [
        (RequestConfig(), GenerationConfig(), 0.0, 0),
        (RequestConfig(), GenerationConfig(do_sample=True, temperature=0.6, top_k=20), 0.6, 20),
        (RequestConfig(temperature=0), GenerationConfig(do_sample=True, temperature=0.6), 0.0, 0),
        (RequestConfig(temperature=0.3, top_k=5), GenerationConfig(do_sample=True, temperature=0.6, top_k=20), 0.3, 5),
    ],
)
def test_requests_win_over_the_models_own_values(request_config, own, temperature, top_k):
    found = resolve_drawing(request_config, own)
    assert (found.temperature, found.top_k) == (temperature, top_k)
