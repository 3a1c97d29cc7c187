"""The server of reinforcement learning: token ids in and out, weights that change, over HTTP."""

import asyncio
import json

import httpx
import pytest
import torch
from safetensors.torch import save
from swift_core.protocols import RequestConfig
from swift_core.testing.tiny import make_tiny_model
from swift_infer import TransformersEngine
from swift_infer.config import RolloutConfig, RolloutSection, ServerSection
from swift_infer.server.app import create_app
from swift_infer.server.gate import PUBLIC_PATHS

KEY = {"authorization": "Bearer k"}
GREEDY = {"max_tokens": 6, "temperature": 0}


@pytest.fixture
def engine(tmp_path):
    engine = TransformersEngine(make_tiny_model(tmp_path / "tiny"), use_cpu=True, logprobs_mode="processed")
    yield engine
    engine.close()


@pytest.fixture
def app(engine):
    section = RolloutSection(max_weight_bytes=400_000, max_rollouts=8)
    return create_app(engine, ServerSection(api_key="k"), RequestConfig(), context_length=512, rollout=section)


def asked(app, *calls):
    """Send requests one after the other and return status and JSON of each."""

    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", headers=KEY, timeout=60) as http:
            return [await http.request(method, path, **more) for method, path, more in calls]

    return [(found.status_code, found.json()) for found in asyncio.run(main())]


def generate(*requests, **sampling):
    return ("POST", "/rollout/generate", {"json": {"requests": list(requests), "sampling": sampling or GREEDY}})


def weights(tensors, query="version=1", metadata=None):
    return (
        "POST",
        f"/rollout/weights?{query}",
        {"content": save(tensors, metadata), "headers": {"content-type": "application/octet-stream"}},
    )


def written(found):
    return [[one["token_ids"] for one in result["completions"]] for result in found["results"]]


def test_token_ids_in_and_out_with_logprobs_of_the_drawn_distribution(app, engine):
    sampling = {"max_tokens": 5, "temperature": 0.5, "n": 2, "top_k": 4}
    (_, first), (_, again) = asked(
        app, *[generate({"prompt_ids": [5, 6, 7], "seed": 3}, {"prompt_ids": [9, 8], "seed": 4}, **sampling)] * 2
    )
    assert written(first) == written(again) and first["version"] == 0
    one = first["results"][0]["completions"][1]
    assert len(one["token_ids"]) == len(one["logprobs"]) == 5 and one["versions"] == [[0, 5]]
    row = [5, 6, 7]
    for token, told in zip(one["token_ids"], one["logprobs"], strict=True):
        with torch.no_grad():
            logits = engine.model(torch.tensor([row])).logits[0, -1] / 0.5
        kept = logits.masked_fill(logits < logits.topk(4).values[-1], -torch.inf).log_softmax(-1)
        assert told == pytest.approx(float(kept[token]), abs=1e-4)
        row.append(token)


def test_messages_tell_their_prompt(app, engine):
    ((status, found),) = asked(app, generate({"messages": [{"role": "user", "content": "hi"}]}))
    assert status == 200 and found["results"][0]["prompt_ids"][-1] in engine.tokenizer.encode("\n")


def test_weights_change_and_come_back_and_versions_follow(app, engine):
    own = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    torch.manual_seed(0)
    other = {name: torch.randn_like(tensor) * 0.1 for name, tensor in own.items()}
    ask = generate({"prompt_ids": [5, 6, 7]})
    (_, before), (_, told), (_, after), _, (_, back) = asked(app, ask, weights(other), ask, weights(own, "version=2"), ask)

    def tokens(found):
        return found["results"][0]["completions"][0]["token_ids"]

    assert told["version"] == 1 and told["tensors"] == len(own)
    assert tokens(before) == tokens(back) != tokens(after)
    assert back["results"][0]["completions"][0]["versions"] == [[2, 6]]


def test_weights_in_parts_come_in_order(app, engine):
    names = list(engine.model.state_dict())
    parts = [{name: engine.model.state_dict()[name] for name in chosen} for chosen in (names[:3], names[3:])]
    found = asked(
        app,
        weights(parts[0], "version=5&part=0&parts=2"),
        ("GET", "/rollout/version", {}),
        weights(parts[1], "version=6&part=1&parts=2"),
        weights(parts[1], "version=5&part=1&parts=2"),
        ("GET", "/rollout/version", {}),
    )
    assert [status for status, _ in found] == [200, 200, 409, 200, 200]
    assert (found[1][1]["version"], found[4][1]["version"]) == (0, 5)


@pytest.mark.parametrize(
    ("query", "content", "status"),
    [
        ("version=1", save({"nope": torch.zeros(1)}), 400),
        ("version=1", save({"model.norm.weight": torch.zeros(3)}), 400),
        ("version=1", b"\x80\x04no pickle is ever read", 400),
        ("version=-1", b"", 400),
        ("version=1&kind=adapter", save({"a": torch.zeros(1)}), 400),
        ("version=1&kind=adapter&name=a", save({"a": torch.zeros(1)}), 400),
        ("version=1&part=2&parts=2", b"", 400),
        ("version=1", b"0" * 500_000, 413),
    ],
)
def test_bad_weights_change_nothing(app, engine, query, content, status):
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    ((found, body),) = asked(app, ("POST", f"/rollout/weights?{query}", {"content": content}))
    assert found == status and body["error"]["message"]
    assert engine.version == 0 and all(torch.equal(tensor, before[name]) for name, tensor in engine.model.state_dict().items())


@pytest.mark.parametrize(
    "body",
    [
        {"requests": []},
        {"requests": [{"prompt_ids": [1], "messages": [{"role": "user", "content": "a"}]}]},
        {"requests": [{"prompt_ids": [10**6]}]},
        {"requests": [{"prompt_ids": [1]}], "unknown": 1},
        {"requests": [{"prompt_ids": [1]}], "sampling": {"temperatur": 1}},
        {"requests": [{"prompt_ids": [1]}] * 3, "sampling": {"n": 4}},
    ],
)
def test_bad_requests_are_a_400(app, body):
    ((status, found),) = asked(app, ("POST", "/rollout/generate", {"json": body}))
    assert status == 400 and found["error"]["message"]


def test_pause_sleep_and_wake(app, engine):
    ask = generate({"prompt_ids": [5, 6, 7]})
    own = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    found = asked(
        app,
        ask,
        ("POST", "/rollout/pause", {"json": {"running": "abort"}}),
        ("POST", "/rollout/resume", {}),
        ("POST", "/rollout/sleep", {"json": {"level": 2}}),
        ("POST", "/rollout/wake", {}),
        weights(own, "version=3"),
        ("POST", "/rollout/wake", {}),
        ask,
    )
    assert [status for status, _ in found] == [200, 200, 200, 200, 400, 200, 200, 200]
    assert found[4][1]["error"]["code"] == "weights_missing"
    assert found[0][1]["results"][0]["completions"][0]["token_ids"] == found[7][1]["results"][0]["completions"][0]["token_ids"]


def test_answers_that_run_while_weights_change_say_so(engine):
    async def main():
        started = asyncio.Event()

        async def read():
            from swift_infer import InferRequest

            config = RequestConfig(max_tokens=300, temperature=0, ignore_eos=True)
            task = asyncio.ensure_future(engine.ainfer(InferRequest(prompt_ids=[5, 6]), config))
            started.set()
            return (await task).choices[0]

        job = asyncio.ensure_future(read())
        await started.wait()
        while engine.scheduler.running == 0 and not job.done():
            await asyncio.sleep(0)
        await asyncio.to_thread(engine.update_weights, dict(engine.model.state_dict()), version=1, running="keep")
        return await job

    versions = asyncio.run(main()).versions
    assert sum(count for _, count in versions) == 300 and [version for version, _ in versions] in ([0, 1], [0], [1])


def test_an_adapter_is_put_in_place(app, engine):
    pytest.importorskip("swift_tuners")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}

    def adapter(seed):
        drawn = torch.Generator().manual_seed(seed)
        sizes = {"q_proj": 32, "v_proj": 16}
        return {
            f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{side}.weight": torch.randn(shape, generator=drawn)
            for layer in range(2)
            for name, size in sizes.items()
            for side, shape in (("A", (2, 32)), ("B", (size, 2)))
        }

    told = {"adapter_config": json.dumps(settings)}
    ask = [generate({"prompt_ids": [5, 6, 7], "adapter": name} if name else {"prompt_ids": [5, 6, 7]}) for name in (None, "policy")]
    found = asked(
        app,
        ask[0],
        weights(adapter(1), "version=1&kind=adapter&name=policy", told),
        ask[1],
        weights(adapter(2), "version=2&kind=adapter&name=policy", told),
        ask[1],
        ask[0],
        ("GET", "/rollout/version", {}),
    )
    assert [status for status, _ in found] == [200] * 7, found
    tokens = [found[place][1]["results"][0]["completions"][0]["token_ids"] for place in (0, 2, 4, 5)]
    assert tokens[0] == tokens[3] and len({tuple(one) for one in tokens}) == 3
    assert found[6][1] == {"version": 2, "adapters": {"policy": 2}, "state": "running"}


def test_control_routes_need_the_key(app):
    async def main():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
            pairs = [(method, route.path) for route in app.routes for method in getattr(route, "methods", ())]
            return {(method, path): (await http.request(method, path)).status_code for method, path in pairs if path not in PUBLIC_PATHS}

    found = asyncio.run(main())
    assert any(path.startswith("/rollout/") for _, path in found) and set(found.values()) == {401}


def test_the_command_has_settings_of_its_own():
    config = RolloutConfig(model="m", max_rollouts=3)
    assert config.engine_config().logprobs_mode == "processed" and config.rollout.max_rollouts == 3
