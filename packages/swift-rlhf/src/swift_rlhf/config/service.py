"""Settings of engines outside of the training process that write the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from swift_core.config.fields import Section, option
from swift_core.config.parallel import mode_of
from swift_core.errors import Problem


class ServiceSection(Section):
    """Rollout engine options."""

    rollout_url: list[str] = option(
        [], "servers of `swift rollout` that write the answers: one address or several, such as http://127.0.0.1:8000", basic=True
    )
    vllm_server_host: list[str] = option([], "the same as host and port of each server, as ms-swift takes them")
    vllm_server_port: list[int] = option([], "ports of --vllm_server_host; default: 8000")
    rollout_api_key: str | None = option(None, "key of those servers", secret=True)
    rollout_timeout: float = option(
        240.0, "seconds without any answer after which a server that is dead, slow or failing ends the run", gt=0
    )
    rollout_running: Literal["wait", "abort", "keep"] = option(
        "keep",
        "what becomes of answers under way when weights move: they end first, are broken off and continued, or go on between two tokens",
    )
    async_generate: bool = option(False, "let servers write the next round of answers while this one is trained on")
    max_staleness: int | None = option(
        None, "optimizer steps that the weights behind an answer may be old; default: 0, or one round with --async_generate", ge=0
    )
    vllm_mode: Literal["server", "colocate"] | None = option(
        None, "with --use_vllm: servers at --rollout_url, or an engine in this process; default: server where there is an address"
    )
    sleep_level: int = option(
        0, "colocate: what the engine gives back while the model is trained: 1 keys and values, 2 weights too", ge=0, le=2
    )
    vllm_gpu_memory_utilization: float = option(0.9, "colocate: share of the device memory for the engine", gt=0, le=1)
    vllm_tensor_parallel_size: int = option(1, "colocate: devices that the engine splits its weights over", ge=1)
    vllm_max_model_len: int | None = option(None, "colocate: most tokens of prompt and answers; default: as the model says", ge=1)
    vllm_enforce_eager: bool = option(False, "colocate: no compiled graphs: starts sooner, writes slower")
    vllm_engine_kwargs: dict[str, Any] = option({}, "colocate: further settings of the engine, as JSON")

    @property
    def urls(self) -> list[str]:
        """Return the addresses of the servers."""
        ports = self.vllm_server_port or [8000] * len(self.vllm_server_host)
        return self.rollout_url or [f"http://{host}:{port}" for host, port in zip(self.vllm_server_host, ports, strict=False)]

    @property
    def ahead(self) -> bool:
        """Say whether rounds are written ahead."""
        return self.async_generate or bool(self.max_staleness)


def mode_of_rollouts(config: Any) -> Literal["process", "server", "colocate"]:
    """Return where answers are written: by the model that is trained, by servers, or by an engine in this process."""
    service: ServiceSection = config.service
    if service.urls or service.vllm_mode == "server":
        return "server"
    return "colocate" if config.sampling.use_vllm or service.vllm_mode == "colocate" else "process"


def rounds_ahead(config: Any, updates: int) -> int:
    """Return how many rounds are written while one is trained.

    Args:
        config: settings of the run.
        updates: optimizer steps of a round.
    """
    service: ServiceSection = config.service
    if service.max_staleness is not None:
        return service.max_staleness // updates
    return int(service.async_generate)


_OF_COLOCATED = (
    *("sleep_level", "vllm_gpu_memory_utilization", "vllm_tensor_parallel_size", "vllm_max_model_len"),
    *("vllm_enforce_eager", "vllm_engine_kwargs"),
)
_OF_SERVERS = ("rollout_api_key", "rollout_timeout", "rollout_running", "async_generate", "max_staleness")


def service_problems(config: Any) -> Iterator[Problem]:
    """Yield the settings of rollout engines that do not fit together."""
    service: ServiceSection = config.service
    mode = mode_of_rollouts(config)
    if mode == "server" and not service.urls:
        yield Problem("--vllm_mode server", "no address is given", "start `swift rollout` and add --rollout_url http://127.0.0.1:8000")
    if service.rollout_url and service.vllm_mode == "colocate":
        yield Problem("--rollout_url", "is not used by --vllm_mode colocate", "remove one of the two")
    if service.vllm_server_port and len(service.vllm_server_port) != len(service.vllm_server_host):
        what = f"{len(service.vllm_server_port)} ports for {len(service.vllm_server_host)} hosts"
        yield Problem("--vllm_server_port", what, "one port for each --vllm_server_host")
    for url in service.rollout_url:
        if not url.startswith(("http://", "https://")):
            yield Problem("--rollout_url", f"{url!r} is no http address", "such as http://127.0.0.1:8000")
    unused = [] if mode == "server" else list(_OF_SERVERS)
    unused += [] if mode == "colocate" else list(_OF_COLOCATED)
    for name in unused:
        if config.given(name):
            needed = "--rollout_url http://127.0.0.1:8000" if name in _OF_SERVERS else "--use_vllm true --vllm_mode colocate"
            yield Problem(f"--{name}", "has no effect on this run", f"remove it, or add {needed}")
    if mode == "colocate" and not hasattr(config, "loading"):
        what = "the engine would have to load a model that Python code brings"
        yield Problem("--use_vllm", what, "GRPOTrainer(..., engine=ColocatedEngine(...)), or `swift rlhf`")
    if service.async_generate and service.max_staleness == 0:
        yield Problem("--max_staleness 0", "lets no answer be written ahead", "remove --async_generate, or --max_staleness 1")
    if mode != "process" and mode_of(config) not in ("ddp", "none", "single"):
        what = f"weights that are spread over devices ({mode_of(config)}) are not gathered for other engines yet"
        yield Problem(f"--{'rollout_url' if mode == 'server' else 'use_vllm'}", what, "remove it, or train with DDP")
    if mode != "process" and config.sampling.stop_words and config.sampling.max_turns > 1:
        yield Problem("--stop_words", "cut turns of an engine outside where the template does not expect it", "remove it")
