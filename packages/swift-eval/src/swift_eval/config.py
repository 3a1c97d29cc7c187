"""Settings of `swift eval`."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field
from swift_core.config.command import CommandConfig
from swift_core.config.fields import Section, option
from swift_core.errors import Problem


class EndpointSection(Section):
    """Endpoint options."""

    model: str | None = option(None, "name under which the endpoint serves the model", basic=True)
    eval_url: str | None = option(None, "base URL of an OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1", basic=True)
    api_key: str | None = option(None, "key of the endpoint", basic=True, secret=True)
    connect_timeout: float = option(5.0, "seconds to wait for the endpoint before anything is evaluated", gt=0)


class EvalSection(Section):
    """Evaluation options."""

    eval_dataset: list[str] = option(
        [], "benchmarks by EvalScope name, such as gsm8k; general_qa and general_mcq take your own files", basic=True
    )
    eval_limit: int | None = option(None, "samples of each subset; default: all", basic=True, ge=1)
    eval_dataset_args: dict[str, dict[str, Any]] = option(
        {}, 'settings of each benchmark, as JSON: {"general_qa": {"local_path": "qa.jsonl"}}', basic=True
    )
    eval_generation_config: dict[str, Any] = option(
        {}, 'how the model generates, as JSON: {"max_tokens": 512, "temperature": 0.0}; temperature is 0 unless given', basic=True
    )
    eval_num_proc: int = option(16, "requests in flight at a time", basic=True, ge=1)
    eval_output_dir: str = option("eval_output", "folder that receives one subfolder for each evaluation", basic=True)
    extra_eval_args: dict[str, Any] = option({}, 'further fields of EvalScope\'s TaskConfig, as JSON: {"repeats": 2, "judge": {...}}')
    use_hf: bool = option(False, "fetch benchmark data from Hugging Face instead of ModelScope")
    seed: int = option(42, "seed of few-shot choice and shuffling")


class EvalConfig(CommandConfig):
    """Settings of `swift eval`: `EvalConfig(model="m", eval_url="http://127.0.0.1:8000/v1", eval_dataset=["gsm8k"])`."""

    command: ClassVar[str] = "eval"

    endpoint: EndpointSection = Field(default_factory=EndpointSection)
    evaluation: EvalSection = Field(default_factory=EvalSection)

    def check(self) -> list[Problem]:
        """Return what is missing and which settings concern no benchmark of this evaluation."""
        problems: list[Problem] = []
        url = self.endpoint.eval_url
        if not self.endpoint.model:
            problems.append(Problem("--model", "is missing", "--model NAME, as `curl URL/models` lists it"))
        if not url:
            problems.append(Problem("--eval_url", "is missing", "--eval_url http://127.0.0.1:8000/v1, where `swift deploy` serves"))
        elif urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            problems.append(Problem("--eval_url", f"{url!r} is not an http or https address", "--eval_url http://HOST:PORT/v1"))
        if not self.evaluation.eval_dataset:
            problems.append(Problem("--eval_dataset", "is missing", "--eval_dataset gsm8k, or general_qa with your own file"))
        chosen = ", ".join(self.evaluation.eval_dataset) or "empty"
        for name in self.evaluation.eval_dataset_args:
            if name not in self.evaluation.eval_dataset:
                what = f"sets {name!r}, but --eval_dataset is {chosen}"
                problems.append(Problem("--eval_dataset_args", what, f"add {name} to --eval_dataset or remove it"))
        return problems
