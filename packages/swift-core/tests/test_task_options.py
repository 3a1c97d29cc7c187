"""Task options are obeyed or refused."""

from __future__ import annotations

from typing import Any

import pytest
from swift_core.config.tasks import TaskSection
from swift_core.config.training import PtConfig, SftConfig
from swift_core.errors import ConfigError


def sft(**settings: Any) -> SftConfig:
    return SftConfig(**{"model": "m", "dataset": ["d.jsonl"], "tuner_type": "full", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "infonce"}, "is no loss of --task_type causal_lm"),
        ({"task_type": "embedding", "loss_type": "listwise_reranker"}, "is no loss of --task_type embedding"),
        ({"num_labels": 3}, "--num_labels: has no effect with --task_type causal_lm"),
        ({"task_type": "embedding", "loss_type": "contrastive", "infonce_temperature": 0.2}, "has no effect with --loss_type contrastive"),
        ({"task_type": "reranker", "positive_token": "A"}, "--positive_token: has no effect"),
        ({"task_type": "reranker", "mrl_dims": {64: 1.0}}, "--mrl_dims: has no effect"),
        ({"task_type": "reranker", "listwise_temperature": 0.5}, "has no effect with --loss_type pointwise_reranker"),
        ({"task_type": "embedding", "infonce_fake_neg_margin": 0.3}, "has no effect on its own"),
        ({"task_type": "embedding", "infonce_use_batch": False, "infonce_include_qq": True}, "takes negatives of the batch"),
        ({"task_type": "seq_cls", "packing": True}, "takes whole texts"),
        ({"task_type": "seq_cls", "loss_scale": "all"}, "has no loss on tokens"),
        ({"task_type": "embedding", "mrl_dims": {0: 1.0}}, "above 0"),
        ({"task_type": "embeding"}, "did you mean embedding"),
    ],
)
def test_options_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sft(**settings)


def test_plain_text_has_no_labels() -> None:
    with pytest.raises(ConfigError, match="plain text has no labels"):
        PtConfig(model="m", dataset=["d.txt"], task_type="seq_cls", tuner_type="full")


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, ""),
        ({"task_type": "seq_cls"}, ""),
        ({"task_type": "embedding"}, "infonce"),
        ({"task_type": "reranker"}, "pointwise_reranker"),
        ({"task_type": "generative_reranker", "loss_type": "listwise_reranker"}, "listwise_reranker"),
    ],
)
def test_each_task_has_its_default_loss(settings: dict[str, Any], loss: str) -> None:
    assert sft(**settings).task.loss == loss


def test_sizes_and_weights_come_as_json() -> None:
    found = SftConfig.from_values(
        {"model": "m", "dataset": ["d"], "tuner_type": "full", "task_type": "embedding", "mrl_dims": {"128": 1, "64": "0.5"}},
        {"mrl_dims": "flag"},
    )
    assert found.task.mrl_dims == {128: 1.0, 64: 0.5}


@pytest.mark.parametrize(("metric", "better"), [("eval_loss", False), ("eval_mse", False), ("eval_mrr", True), ("eval_spearman", True)])
def test_the_better_side_of_a_metric_follows_from_its_name(metric: str, better: bool) -> None:
    assert sft(metric_for_best_model=metric).saving.greater_is_better is better


def test_written_options_are_taken_again() -> None:
    """A checkpoint's args.json holds every option, given or not: reading it back must not be refused."""
    config = sft(task_type="embedding", loss_type="contrastive")
    flat = {name: value for name, value in config.flat().items() if name in TaskSection.model_fields and value is not None}
    assert sft(**flat).task == config.task
