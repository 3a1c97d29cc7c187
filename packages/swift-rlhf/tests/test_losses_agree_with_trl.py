"""The same numbers as TRL, where TRL has the loss.

Importing TRL's trainers takes longer than all these tests together, and they want a model: the methods that compute the losses are
read from TRL's source instead, and run on log-probabilities of our own.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import textwrap
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from swift_rlhf.losses import (
    aggregate,
    cpo_loss,
    dpo_loss,
    entropy_mask,
    entropy_threshold,
    generalized_jsd,
    kl_estimate,
    kto_kl,
    kto_loss,
    log_odds_ratio,
    off_policy_sequence_mask,
    policy_loss,
)
from swift_rlhf.losses.tokens import desensitized_logps, sequence_logps, wpo_weights

FOUND = importlib.util.find_spec("trl")
pytestmark = pytest.mark.skipif(FOUND is None, reason="trl is not installed")


@cache
def method(file: str, name: str):
    """Return a method of TRL as a function of its own."""
    text = (Path(FOUND.origin).parent / file).read_text()
    found = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.name == name)
    found.decorator_list = []
    source = textwrap.dedent(ast.unparse(found))
    names: dict = {"torch": torch, "F": F, "math": math, "is_peft_model": lambda model: False}
    names["disable_gradient_checkpointing"] = lambda *_: torch.no_grad()
    exec(compile("from __future__ import annotations\n" + source, file, "exec"), names)
    return names[name]


def same(tensor):
    return tensor


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather=same, gather_for_metrics=same, pad_across_processes=lambda tensor, **_: tensor, num_processes=1
)


class Stop(Exception):
    """Raised where TRL starts to log."""


class Loss(Exception):
    """Carries the loss out of TRL's method."""


def pairs(count: int = 6, tokens: int = 9):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, tokens, (2 * count,), generator=generator)
    completion = torch.zeros(2 * count, tokens, dtype=torch.long)
    for row, length in enumerate(lengths.tolist()):
        completion[row, 1 : 1 + length] = 1
    mask = completion[:, 1:]
    policy, reference = (-2 * torch.rand(2 * count, tokens - 1, generator=generator, dtype=torch.float64) * mask for _ in range(2))
    squares = -torch.rand(2 * count, tokens - 1, generator=generator, dtype=torch.float64)
    return completion, mask, policy, reference, squares


def trl_dpo(**settings) -> float:
    completion, _, policy, reference, squares = pairs()

    def model(log_probs):
        zeros = torch.zeros_like(log_probs)
        output = SimpleNamespace(log_probs=log_probs, log_sum_sq_probs=squares, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
        return lambda **_: output

    trainer = SimpleNamespace(
        **{
            "beta": 0.1,
            "label_smoothing": 0.0,
            "loss_types": ["sigmoid"],
            "loss_weights": [1.0],
            "ld_alpha": None,
            "f_divergence_type": "reverse_kl",
            "f_alpha_divergence_coef": 0.5,
            "use_weighting": False,
        }
        | settings,
        model=SimpleNamespace(training=False),
        ref_model=model(reference),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    inputs = {"completion_mask": completion, "input_ids": torch.zeros_like(completion), "attention_mask": torch.ones_like(completion)}
    found = method("trainer/dpo_trainer.py", "_compute_loss")(trainer, model(policy), inputs, False)
    return float(found)


def our_dpo(*, ld_alpha=None, wpo=False, **settings) -> float:
    _, mask, policy, reference, squares = pairs()
    lengths = mask.sum(-1)
    shared = torch.minimum(*lengths.chunk(2)).repeat(2)
    of = (
        (lambda each: sequence_logps(each, mask))
        if ld_alpha is None
        else (lambda each: desensitized_logps(each, mask, shared, alpha=ld_alpha))
    )
    weights = wpo_weights(policy, squares, mask).chunk(2)
    chosen, rejected = lengths.chunk(2)
    found = dpo_loss(
        *of(policy).chunk(2),
        *of(reference).chunk(2),
        chosen_lengths=chosen,
        rejected_lengths=rejected,
        chosen_nll=-sequence_logps(policy, mask).chunk(2)[0],
        pair_weights=weights[0] * weights[1] if wpo else None,
        **settings,
    )
    return float(found.mean())


KINDS = ["sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired"]
KINDS += ["apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft"]


@pytest.mark.parametrize("kind", KINDS)
def test_dpo(kind) -> None:
    smoothing = 0.1 if kind in ("robust", "exo_pair", "aot", "aot_unpaired") else 0.0
    assert our_dpo(loss_type=kind, label_smoothing=smoothing) == pytest.approx(trl_dpo(loss_types=[kind], label_smoothing=smoothing))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"f_divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
        ({"f_divergence": "js_divergence"}, {"f_divergence_type": "js_divergence"}),
        ({"ld_alpha": 0.5}, {"ld_alpha": 0.5}),
        ({"wpo": True}, {"use_weighting": True}),
        (
            {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
            {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        ),
    ],
    ids=["forward_kl", "js", "ld", "wpo", "mpo"],
)
def test_dpo_options(ours, theirs) -> None:
    assert our_dpo(**ours) == pytest.approx(trl_dpo(**theirs))


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo", "simpo"])
def test_cpo(kind) -> None:
    _, mask, policy, _, _ = pairs()
    sums, lengths = sequence_logps(policy, mask), mask.sum(-1)
    chosen, rejected = (sums / lengths if kind in ("ipo", "simpo") else sums).chunk(2)
    trainer = SimpleNamespace(alpha=0.0, beta=0.5, loss_type=kind, simpo_gamma=0.7, label_smoothing=0.0, accelerator=ACCELERATOR)
    expected = method("experimental/cpo/cpo_trainer.py", "cpo_loss")(trainer, chosen, rejected)[0]
    of = lengths.chunk(2)
    found = cpo_loss(*sums.chunk(2), chosen_lengths=of[0], rejected_lengths=of[1], loss_type=kind, beta=0.5, simpo_gamma=0.7, cpo_alpha=0)
    assert torch.allclose(found, expected)


def test_orpo() -> None:
    _, mask, policy, _, _ = pairs()
    chosen, rejected = (sequence_logps(policy, mask) / mask.sum(-1)).chunk(2)
    trainer = SimpleNamespace(beta=0.1, accelerator=ACCELERATOR)
    odds = method("experimental/orpo/orpo_trainer.py", "odds_ratio_loss")
    odds.__globals__["log1mexp"] = method("experimental/utils.py", "log1mexp") if _has("experimental/utils.py", "log1mexp") else _log1mexp
    assert float(log_odds_ratio(chosen, rejected).mean()) == pytest.approx(float(odds(trainer, chosen, rejected)[-1]), rel=1e-5)


def _has(file: str, name: str) -> bool:
    return f"def {name}(" in (Path(FOUND.origin).parent / file).read_text()


def _log1mexp(values):
    return torch.log1p(-torch.exp(values))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_generalized_jsd(beta) -> None:
    student, teacher = torch.randn(2, 5, 11, dtype=torch.float64), torch.randn(2, 5, 11, dtype=torch.float64)
    labels = torch.tensor([[1, 1, -100, 1, 1], [-100, 1, 1, 1, -100]])
    expected = method("experimental/gkd/gkd_trainer.py", "generalized_jsd_loss")(
        student, teacher, labels=labels, beta=beta, temperature=0.9, num_items_in_batch=7
    )
    rows = labels != -100
    assert float(generalized_jsd(student[rows], teacher[rows], beta=beta, temperature=0.9).sum() / 7) == pytest.approx(float(expected))


def rollouts():
    generator = torch.Generator().manual_seed(2)
    old = -3 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    logps = old + 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    mask = (torch.arange(6) < torch.tensor([6, 2, 5, 3])[:, None]).long()
    entropies = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.2, -0.7, -0.3, 0.4], dtype=torch.float64)
    reference = old + 0.2 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    weights = torch.where(mask.bool(), torch.rand(4, 6, generator=generator, dtype=torch.float64), 1)
    return logps.requires_grad_(True), old, mask, entropies, advantages, reference, weights


def trl_grpo(file: str = "trainer/grpo_trainer.py", *, corrected: bool = False, **settings) -> tuple[float, torch.Tensor]:
    logps, old, mask, entropies, advantages, reference, weights = rollouts()
    trainer = SimpleNamespace(
        **{
            "loss_type": "grpo",
            "importance_sampling_level": "token",
            "epsilon_low": 0.2,
            "epsilon_high": 0.28,
            "beta": 0.0,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "max_completion_length": 8,
        }
        | {name: value for name, value in settings.items() if name not in ("delta", "unbiased")},
        model=SimpleNamespace(training=False),
        accelerator=ACCELERATOR,
        aux_loss_enabled=False,
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, entropies, None),
        args=SimpleNamespace(
            delta=settings.get("delta"),
            use_bias_correction_kl=settings.get("unbiased", False),
            sapo_temperature_pos=1.0,
            sapo_temperature_neg=1.05,
            vespo_k_pos=2.0,
            vespo_lambda_pos=3.0,
            vespo_k_neg=3.0,
            vespo_lambda_neg=2.0,
        ),
    )
    for name in ("get_high_entropy_mask", "get_off_policy_mask", "get_gamma_weights"):
        function = method("trainer/grpo_trainer.py", name)
        function = torch.no_grad()(function)
        setattr(trainer, name, function if name != "get_high_entropy_mask" else lambda *given, f=function: f(trainer, *given))
    ids = torch.zeros(4, 6, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "importance_sampling_ratio": weights,
        "num_items_in_batch": mask.sum(),
    }
    compute = method(file, "_compute_loss")

    class Metrics(dict):
        """Ends the method where logging starts: the loss is final there."""

        def __missing__(self, key):
            raise Stop

    trainer._metrics = Metrics()
    try:
        loss = compute(trainer, None, inputs)
    except (Stop, AttributeError):
        loss = _local_loss()
    (gradient,) = torch.autograd.grad(loss, logps)
    return float(loss.detach()), gradient


def _local_loss() -> torch.Tensor:
    import sys

    trace = sys.exc_info()[2]
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "_compute_loss":
            return frame.f_locals["loss"]
        trace = trace.tb_next
    raise AssertionError("TRL never computed a loss")


def our_grpo(*, corrected=False, beta=0.0, unbiased=False, top=1.0, opsm=None, **settings) -> tuple[float, torch.Tensor]:
    logps, old, mask, entropies, advantages, reference, weights = rollouts()
    keep = None
    if top < 1:
        keep = entropy_mask(entropies, mask, entropy_threshold(entropies, mask, top=top))
    if opsm is not None:
        keep = off_policy_sequence_mask(logps, old, advantages, mask, delta=opsm)
    found = policy_loss(
        logps,
        old,
        advantages,
        mask,
        keep=keep,
        weights=weights if corrected else None,
        kl=kl_estimate(logps, reference) if beta else None,
        kl_coef=beta,
        kl_weighted=unbiased,
        **settings,
    )
    loss = found.loss.mean()
    return float(loss.detach()), torch.autograd.grad(loss, logps)[0]


CLIP = {"epsilon": 0.2, "epsilon_high": 0.28}
CASES = {
    "grpo": (CLIP, {}),
    "bnpo": (CLIP, {}),
    "dr_grpo": ({**CLIP, "max_completion_length": 8}, {}),
    "dapo": (CLIP, {}),
    "luspo": (CLIP, {"importance_sampling_level": "sequence"}),
    "cispo": ({"cispo_cap": 1.5}, {"epsilon_high": 1.5}),
    "sapo": ({}, {}),
    "vespo": ({"corrected": True}, {"corrected": True}),
    "delta": ({"loss_type": "grpo", **CLIP, "delta": 1.5}, {"loss_type": "grpo", "delta": 1.5}),
    "gspo": ({**CLIP}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    "kl": ({"loss_type": "dapo", **CLIP, "beta": 0.3}, {"loss_type": "dapo", "beta": 0.3}),
    "kl corrected": (
        {"loss_type": "grpo", **CLIP, "beta": 0.3, "unbiased": True, "corrected": True},
        {"loss_type": "grpo", "beta": 0.3, "unbiased": True, "corrected": True},
    ),
    "entropy": ({"loss_type": "grpo", **CLIP, "top": 0.5}, {"loss_type": "grpo", "top_entropy_quantile": 0.5}),
    "opsm": ({"loss_type": "dapo", **CLIP, "opsm": 0.05}, {"loss_type": "dapo", "off_policy_mask_threshold": 0.05}),
}


@pytest.mark.parametrize("name", CASES)
def test_grpo(name) -> None:
    ours, theirs = ({"loss_type": name, **each} if "loss_type" not in each else each for each in CASES[name])
    value, gradient = our_grpo(**ours)
    expected, slope = trl_grpo(**theirs)
    assert value == pytest.approx(expected)
    assert torch.allclose(gradient, slope, atol=1e-12)


def test_gmpo() -> None:
    value, gradient = our_grpo(loss_type="gmpo", epsilon=0.1, epsilon_high=0.2)
    expected, slope = trl_grpo("experimental/gmpo/gmpo_trainer.py", epsilon_low=0.1, epsilon_high=0.2)
    assert value == pytest.approx(expected)
    assert torch.allclose(gradient, slope, atol=1e-12)


def test_kto() -> None:
    _, mask, policy, reference, _ = pairs()
    sums, ref_sums = sequence_logps(policy, mask), sequence_logps(reference, mask)
    good = torch.arange(len(sums)) % 3 == 0
    kl = kto_kl(sums.roll(1) + 3, ref_sums).mean().clamp_min(0)
    found = kto_loss(sums, ref_sums, good, kl=kl, desirable_weight=1.3, undesirable_weight=0.7)
    # The two lines of TRL's trainer, which stand inside a method that wants a model, data and a logger.
    ratios = sums - ref_sums
    expected = torch.where(good, 1.3 * (1 - F.sigmoid(0.1 * (ratios - kl))), 0.7 * (1 - F.sigmoid(0.1 * (kl - ratios))))
    source = (Path(FOUND.origin).parent / "trainer/kto_trainer.py").read_text()
    assert "chosen_losses = 1 - F.sigmoid(self.beta * (chosen_logratios - kl))" in source
    assert "rejected_losses = 1 - F.sigmoid(self.beta * (kl - rejected_logratios))" in source
    assert torch.allclose(found, expected)


def test_the_mean_entropy_is_that_of_the_bonus() -> None:
    _, _, mask, entropies, *_ = rollouts()
    assert float(aggregate(entropies, mask, "token_mean").mean()) == pytest.approx(float((entropies * mask).sum() / mask.sum()))
