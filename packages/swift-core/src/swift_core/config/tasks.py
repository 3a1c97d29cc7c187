"""What a model is trained for, and the options of the tasks with a head or a loss of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from swift_core.config.fields import Section, option
from swift_core.errors import Problem

if TYPE_CHECKING:
    from swift_core.config.training import SftConfig

TaskType = Literal["causal_lm", "seq_cls", "embedding", "reranker", "generative_reranker"]
RERANKERS = ("reranker", "generative_reranker")


class TaskSection(Section):
    """Task options."""

    task_type: TaskType = option(
        "causal_lm",
        "what the model is trained for: answers, classes or numbers (seq_cls), text embeddings, or the relevance of documents",
        basic=True,
    )
    num_labels: int | None = option(
        None, "seq_cls: number of classes, or of numbers to predict; default: counted in the data", basic=True, ge=1
    )
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = option(
        None, "seq_cls: one class, several classes, or numbers; default: by the labels (5, [0, 3], 0.7)"
    )
    loss_type: (
        Literal["cosine_similarity", "contrastive", "online_contrastive", "infonce", "pointwise_reranker", "listwise_reranker"] | None
    ) = option(None, "loss of embeddings (default infonce) or of rerankers (default pointwise_reranker)", basic=True)
    pooling: Literal["last", "mean", "cls"] | None = option(
        None, "embedding: which token's vector stands for a text; default: as 1_Pooling of the model says, else last (mean for encoders)"
    )
    contrastive_margin: float = option(0.5, "cosine distance from which texts that do not belong together cost nothing", gt=0, le=2)
    infonce_temperature: float = option(0.1, "infonce: similarities are divided by this", gt=0)
    infonce_use_batch: bool = option(
        True, "infonce: documents of the other samples of the batch, on all devices, are negatives too; false takes a sample's own only"
    )
    infonce_hard_negatives: int | None = option(None, "infonce: take at most so many of a sample's own negatives; default: all", ge=0)
    infonce_mask_fake_negative: bool = option(
        False, "infonce: leave out negatives that are more similar than the positive, by more than the margin"
    )
    infonce_fake_neg_margin: float = option(0.1, "infonce: margin of infonce_mask_fake_negative", ge=0)
    infonce_include_qq: bool = option(False, "infonce: queries of the batch are negatives to one another")
    infonce_include_dd: bool = option(False, "infonce: a positive document and the documents of other samples are negatives to one another")
    mrl_dims: dict[int, float] = option(
        {}, 'embedding: Matryoshka: first so many numbers of a vector -> weight of their loss, as JSON: {"384": 1.0, "64": 0.5}'
    )
    listwise_temperature: float = option(1.0, "listwise_reranker: scores are divided by this", gt=0)
    listwise_min_group_size: int = option(2, "listwise_reranker: leave out queries with fewer documents than this", ge=2)
    max_positive_samples: int = option(1, "embedding and reranker: positives of a row that are used, drawn by data_seed", ge=1)
    max_negative_samples: int = option(7, "embedding and reranker: negatives of a row that are used, drawn by data_seed", ge=0)
    positive_token: str = option("yes", "generative_reranker: answer for a relevant document; one token")
    negative_token: str = option("no", "generative_reranker: answer for another document; one token")
    reranker_instruction: str = option(
        "Given a web search query, retrieve relevant passages that answer the query",
        "reranker with a chat template: what relevant means; a row's system message takes its place",
    )

    @field_validator("task_type", mode="before")
    @classmethod
    def _trained_here(cls, value: object) -> object:
        if value in ("reward", "prm", "process_reward"):
            raise ValueError("a reward model learns from pairs: use `swift rlhf --rlhf_type rm`")
        return value

    @field_validator("mrl_dims")
    @classmethod
    def _positive(cls, value: dict[int, float]) -> dict[int, float]:
        if any(dim < 1 or weight <= 0 for dim, weight in value.items()):
            raise ValueError("sizes and weights must be above 0")
        return value

    @property
    def loss(self) -> str:
        """Return the loss that is used, or an empty text for tasks with one loss."""
        return self.loss_type or {"embedding": "infonce", **dict.fromkeys(RERANKERS, "pointwise_reranker")}.get(self.task_type, "")


_LOSSES: dict[str, tuple[str, ...]] = {
    "embedding": ("infonce", "cosine_similarity", "contrastive", "online_contrastive"),
    **dict.fromkeys(RERANKERS, ("pointwise_reranker", "listwise_reranker")),
}
_TASKS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("num_labels", "problem_type"), ("seq_cls",)),
    **dict.fromkeys(("pooling", "mrl_dims"), ("embedding",)),
    **dict.fromkeys(("positive_token", "negative_token"), ("generative_reranker",)),
    "reranker_instruction": RERANKERS,
    **dict.fromkeys(("max_positive_samples", "max_negative_samples"), ("embedding", *RERANKERS)),
}
_LOSSES_OF: dict[str, tuple[str, ...]] = {
    "contrastive_margin": ("contrastive", "online_contrastive"),
    **dict.fromkeys((name for name in TaskSection.model_fields if name.startswith("infonce_")), ("infonce",)),
    **dict.fromkeys(("listwise_temperature", "listwise_min_group_size"), ("listwise_reranker",)),
}


def task_problems(config: SftConfig) -> list[Problem]:
    """Return the task options that would have no effect or cannot work, each with its remedy."""
    return [*_loss_problems(config), *_unused_options(config), *_infonce_problems(config), *_other_sections(config)]


def _loss_problems(config: SftConfig) -> list[Problem]:
    task = config.task
    allowed = _LOSSES.get(task.task_type, ())
    if task.loss_type is None or task.loss_type in allowed:
        return []
    owner = next(kind for kind, losses in _LOSSES.items() if task.loss_type in losses)
    fix = f"one of {', '.join(allowed)}" if allowed else f"remove it, or add --task_type {owner}"
    return [Problem(f"--loss_type {task.loss_type}", f"is no loss of --task_type {task.task_type}", fix)]


def _unused_options(config: SftConfig) -> list[Problem]:
    task = config.task
    problems: list[Problem] = []
    for name, info in TaskSection.model_fields.items():
        if not config.given(name) or getattr(task, name) == info.get_default(call_default_factory=True):
            continue
        tasks, losses = _TASKS_OF.get(name), _LOSSES_OF.get(name)
        if tasks is not None and task.task_type not in tasks:
            fix = f"remove it, or add --task_type {tasks[0]}"
            problems.append(Problem(f"--{name}", f"has no effect with --task_type {task.task_type}", fix))
        elif losses is not None and task.loss not in losses:
            kind = next(kind for kind, known in _LOSSES.items() if losses[0] in known)
            fix = f"remove it, or add --task_type {kind} --loss_type {losses[0]}"
            used = f"--loss_type {task.loss}" if task.loss else f"--task_type {task.task_type}"
            problems.append(Problem(f"--{name}", f"has no effect with {used}", fix))
    return problems


def _infonce_problems(config: SftConfig) -> list[Problem]:
    task = config.task
    if task.loss != "infonce":
        return []
    problems: list[Problem] = []
    if config.given("infonce_fake_neg_margin") and task.infonce_fake_neg_margin != 0.1 and not task.infonce_mask_fake_negative:
        fix = "add --infonce_mask_fake_negative true, or remove it"
        problems.append(Problem("--infonce_fake_neg_margin", "has no effect on its own", fix))
    if not task.infonce_use_batch and (task.infonce_include_qq or task.infonce_include_dd):
        name = "infonce_include_qq" if task.infonce_include_qq else "infonce_include_dd"
        problems.append(Problem(f"--{name}", "takes negatives of the batch, and --infonce_use_batch is false", "remove one of the two"))
    return problems


def _other_sections(config: SftConfig) -> list[Problem]:
    """Return settings of other sections that a task with a loss of its own cannot obey."""
    kind = config.task.task_type
    if kind == "causal_lm":
        return []
    problems: list[Problem] = []
    if config.command == "pt":
        problems.append(Problem(f"--task_type {kind}", "plain text has no labels", "use `swift sft`"))
    if config.chat.truncation_strategy == "split":
        problems.append(Problem("--truncation_strategy split", f"cuts what {kind} needs whole", "choose delete, left or right"))
    for name in ("packing", "padding_free", "per_device_token_budget"):
        if config.given(name) and getattr(config.training, name):
            problems.append(Problem(f"--{name}", f"lays tokens side by side, and {kind} takes whole texts", "remove it"))
    if config.given("loss_scale") and config.chat.loss_scale != "default":
        problems.append(Problem("--loss_scale", f"{kind} has no loss on tokens", "remove it"))
    return problems
