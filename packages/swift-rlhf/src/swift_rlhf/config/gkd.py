"""Settings of distillation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swift_core.config.fields import Section, option
from swift_core.config.parallel import mode_of
from swift_core.errors import Problem

from swift_rlhf.config.sampling import SamplingSection, rollout_problems
from swift_rlhf.config.turns import append_problems


class GkdSection(Section):
    """Distillation options."""

    teacher_model: str | None = option(
        None, "model to learn from; default: the model as it was, shown the column `teacher_prompt` instead of the question", basic=True
    )
    teacher_model_type: str | None = option(None, "family of --teacher_model; default: found out from its files")
    teacher_model_revision: str | None = option(None, "branch, tag or commit of --teacher_model on the hub")
    teacher_adapters: list[str] = option([], "adapter folders on top of the teacher")
    teacher_model_server: str | None = option(
        None, "address of an OpenAI-compatible server of the teacher that answers `prompt_logprobs` (vLLM): http://127.0.0.1:8000/v1"
    )
    teacher_server_model: str | None = option(None, "name of the teacher on that server; default: the first that it lists")
    teacher_server_key: str = option("OPENAI_API_KEY", "environment variable with the key of that server")
    teacher_server_timeout: float = option(120.0, "seconds that the server may take for a conversation", gt=0)
    gkd_logits_topk: int | None = option(None, "look at so many of the teacher's likeliest tokens, the others as one; default: all", ge=1)
    gkd_temperature: float = option(1.0, "divides the logits of both models before they are compared", gt=0)
    lmbda: float = option(
        0.5, "share of the steps on answers that the student writes itself; the others take those of the data", ge=0, le=1
    )
    seq_kd: bool = option(False, "in the other steps take answers that the teacher writes instead of those of the data")
    sft_alpha: float = option(0.0, "weight of the cross-entropy of answers that the student did not write", ge=0)
    offload_teacher_model: bool = option(False, "keep the teacher in main memory but for the moment in which it is asked")


def gkd_problems(config: Any) -> list[Problem]:
    """Return the settings of distillation that cannot work together."""
    return [
        *rollout_problems(config),
        *append_problems(config),
        *_teacher_problems(config),
        *_data_problems(config),
        *_mode_problems(config),
    ]


def _teacher_problems(config: Any) -> Iterator[Problem]:
    gkd = config.gkd
    if gkd.teacher_model and gkd.teacher_model_server:
        yield Problem("--teacher_model_server", "is a second teacher beside --teacher_model", "keep one of the two")
    if not gkd.teacher_model:
        for name in ("teacher_model_type", "teacher_model_revision", "teacher_adapters"):
            if config.given(name):
                yield Problem(f"--{name}", "describes --teacher_model, which is not given", "remove it")
        for name in ("offload_teacher_model", "seq_kd"):
            if getattr(gkd, name):
                yield Problem(f"--{name}", "needs a teacher of its own in this process", "add --teacher_model MODEL")
    if gkd.teacher_model_server:
        yield from _server_problems(config)
    else:
        for name in ("teacher_server_model", "teacher_server_key", "teacher_server_timeout"):
            if config.given(name):
                yield Problem(f"--{name}", "describes --teacher_model_server, which is not given", "remove it")


def _server_problems(config: Any) -> Iterator[Problem]:
    gkd = config.gkd
    if not gkd.teacher_model_server.startswith(("http://", "https://")):
        yield Problem("--teacher_model_server", f"{gkd.teacher_model_server!r} is no http address", "such as http://127.0.0.1:8000/v1")
    if gkd.gkd_logits_topk is None:
        yield Problem("--gkd_logits_topk", "is missing: a server tells the likeliest tokens only", "--gkd_logits_topk 20")
    if gkd.gkd_temperature != 1:
        yield Problem("--gkd_temperature", "a server tells probabilities at temperature 1", "remove it")


def _data_problems(config: Any) -> Iterator[Problem]:
    gkd = config.gkd
    if (config.task.beta or 0) > 1:
        yield Problem(f"--beta {config.task.beta:g}", "is outside 0 to 1", "0: KL(teacher || student), 1: KL(student || teacher)")
    if gkd.lmbda == 1:
        for name in ("seq_kd", "sft_alpha"):
            if getattr(gkd, name):
                yield Problem(f"--{name}", "has no effect with --lmbda 1: all answers are the student's own", "remove it, or lower --lmbda")
    if gkd.lmbda == 0 and not gkd.seq_kd:
        for name in SamplingSection.model_fields:
            if config.given(name):
                yield Problem(f"--{name}", "has no effect with --lmbda 0: nothing is sampled", "remove it, or raise --lmbda")


def _mode_problems(config: Any) -> Iterator[Problem]:
    for name in ("ref_model", "ref_model_type", "ref_model_revision", "ref_adapters"):
        if config.given(name):
            yield Problem(f"--{name}", "distillation has a teacher and no reference", f"remove it, or use --teacher{name[3:]}")
    if config.sampling.use_vllm:
        yield Problem("--use_vllm", "the student writes its answers in this process", "remove it")
    if mode_of(config) != "ddp" or config.parallel.sequence_parallel_size > 1:
        yield Problem("--rlhf_type gkd", "needs whole weights in every process", "remove --deepspeed, --fsdp and the parallel sizes")
