"""Settings of training on judged answers: DPO, CPO, SimPO, ORPO, KTO and reward models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator
from swift_core.config.fields import Section, option
from swift_core.errors import Problem

if TYPE_CHECKING:
    from swift_rlhf.config.command import RlhfConfig

_SMOOTHED = frozenset({"sigmoid", "robust", "exo_pair", "aot", "aot_unpaired", "simpo"})
_WITHOUT_REFERENCE = ("cpo", "simpo", "orpo", "rm")


class JudgedSection(Section):
    """Options of judged answers."""

    disable_dropout: bool = option(True, "switch dropout off, so that policy and reference, and both answers, meet the same weights")


class PairSection(Section):
    """Options of pairs of answers."""

    label_smoothing: float = option(0.0, "share of pairs that may be the wrong way round, below 0.5", ge=0, lt=0.5)


class ReferenceSection(Section):
    """Reference model options."""

    precompute_ref_log_probs: bool = option(
        False, "compute the reference model's log-probabilities once before training, and keep them on disk for later runs", basic=True
    )
    sync_ref_model: bool = option(False, "let the reference model follow the trained one (TR-DPO); full tuning")
    ref_model_sync_steps: int = option(512, "steps between two moves of the reference model", ge=1)
    ref_model_mixup_alpha: float = option(0.6, "share of the trained weights in a move of the reference model", gt=0, le=1)


class DpoSection(Section):
    """DPO options."""

    loss_weights: list[float] = option([], "weight of each of several --loss_type, in order; default: 1 each (MPO: 0.8 0.2 1)")
    rpo_alpha: float | None = option(None, "add this many times the cost of the better answer per token (RPO)", ge=0)
    ld_alpha: float | None = option(None, "weight of tokens past the length of the shorter answer (LD-DPO), from 0 to 1", ge=0, le=1)
    use_weighting: bool = option(False, "let a pair weigh what the model itself would have written it with (WPO)")
    discopop_tau: float = option(0.05, "temperature of --loss_type discopop", gt=0)
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = option(
        "reverse_kl", "what holds the model to the reference (f-DPO)"
    )
    f_alpha_divergence_coef: float = option(0.5, "order of alpha_divergence")


class ReferenceFreeSection(Section):
    """CPO and SimPO options."""

    cpo_alpha: float | None = option(None, "weight of the cost of the better answer; default: 1 for CPO, 0 for SimPO as published", ge=0)
    simpo_gamma: float = option(1.0, "margin that SimPO asks for between both answers", ge=0)
    alpha_po_alpha: float = option(0.0, "order of AlphaPO's reward, for example 0.25; 0 is off")


class KtoSection(Section):
    """KTO options."""

    desirable_weight: float = option(1.0, "weight of the good answers", basic=True, ge=0)
    undesirable_weight: float = option(1.0, "weight of the bad answers", basic=True, ge=0)


class RewardModelSection(Section):
    """Reward model options."""

    center_rewards_coefficient: float | None = option(None, "keeps scores around 0, for example 0.01", ge=0)
    num_labels: int | None = option(None, "outputs that learn beside one another; the score is their mean; default: 1", ge=1)
    task_type: Literal["seq_cls"] | None = option(None, "what later commands load the model as; for a reward model always seq_cls")
    problem_type: Literal["regression"] | None = option(None, "how they read its outputs; for a reward model always regression")

    @field_validator("center_rewards_coefficient")
    @classmethod
    def _off(cls, value: float | None) -> float | None:
        return value or None


def preference_problems(config: RlhfConfig) -> list[Problem]:
    """Return the settings of training on judged answers that cannot work together."""
    kind = config.task.rlhf_type
    problems = [*_reference(config, kind), *_pairs(config, kind), *_shape(config, kind)]
    if config.task.beta == 0 and kind != "rm":
        problems.append(Problem("--beta 0", f"leaves nothing of {kind}", "for example --beta 0.1"))
    return problems


def _reference(config: RlhfConfig, kind: str) -> list[Problem]:
    problems: list[Problem] = []
    if kind in _WITHOUT_REFERENCE:
        names = [name for name in ("ref_model", "ref_model_type", "ref_model_revision", "ref_adapters") if config.given(name)]
        problems += [Problem(f"--{name}", f"{kind} has no reference model", "remove it") for name in names]
    elif not config.task.ref_model:
        names = [name for name in ("ref_model_type", "ref_model_revision") if config.given(name)]
        problems += [Problem(f"--{name}", "describes --ref_model, which is not given", "remove it") for name in names]
    return [*problems, *following_problems(config)]


def following_problems(config: Any) -> list[Problem]:
    """Return settings of a reference that follows the trained model which cannot work."""
    section = config.reference
    if not section.sync_ref_model:
        names = [name for name in ("ref_model_sync_steps", "ref_model_mixup_alpha") if config.given(name)]
        return [Problem(f"--{name}", "has no effect without --sync_ref_model", "add --sync_ref_model") for name in names]
    problems: list[Problem] = []
    if hasattr(config, "tuner") and config.tuner.tuner_type != "full":
        fix = "--tuner_type full, or remove --sync_ref_model"
        problems.append(Problem("--sync_ref_model", "moves whole weights, and only an adapter is trained", fix))
    if section.precompute_ref_log_probs:
        problems.append(Problem("--sync_ref_model", "changes what --precompute_ref_log_probs has computed", "remove one of the two"))
    if config.task.ref_model or config.task.ref_adapters:
        problems.append(Problem("--sync_ref_model", "needs a reference of the same weights", "remove --ref_model and --ref_adapters"))
    return problems


def _pairs(config: RlhfConfig, kind: str) -> list[Problem]:
    problems: list[Problem] = []
    losses, smoothing = config.task.loss_type, config.pairs.label_smoothing
    if smoothing and not _SMOOTHED.intersection(losses) and kind in ("dpo", "cpo", "simpo"):
        fix = f"one of {', '.join(sorted(_SMOOTHED))}, or --label_smoothing 0"
        problems.append(Problem("--label_smoothing", f"has no meaning for {' '.join(losses)}", fix))
    if "exo_pair" in losses and not smoothing:
        problems.append(Problem("--loss_type exo_pair", "needs a label smoothing above 0", "add --label_smoothing 0.001"))
    dpo = config.dpo
    if dpo.loss_weights and len(dpo.loss_weights) != len(losses):
        what = f"has {len(dpo.loss_weights)} values for {len(losses)} losses"
        problems.append(Problem("--loss_weights", what, "one weight for each --loss_type"))
    if config.given("discopop_tau") and "discopop" not in losses:
        problems.append(Problem("--discopop_tau", "has no effect without --loss_type discopop", "remove it"))
    if config.given("f_alpha_divergence_coef") and dpo.f_divergence_type != "alpha_divergence":
        problems.append(Problem("--f_alpha_divergence_coef", "has no effect", "add --f_divergence_type alpha_divergence, or remove it"))
    scored = {"sigmoid", "hinge", "ipo", "robust", "exo_pair", "discopop", "sigmoid_norm"}
    if dpo.f_divergence_type != "reverse_kl" and not scored.intersection(losses):
        what = f"has no meaning for {' '.join(losses)}"
        problems.append(Problem(f"--f_divergence_type {dpo.f_divergence_type}", what, f"one of {', '.join(sorted(scored))}"))
    if dpo.use_weighting and {"aot", "aot_unpaired"} & set(losses):
        problems.append(Problem("--use_weighting", "weighs pairs, and aot sorts their values apart", "remove it"))
    if {"aot", "aot_unpaired"} <= set(losses):
        problems.append(Problem("--loss_type", "aot and aot_unpaired sort different values", "keep one of the two"))
    if config.given("simpo_gamma") and "simpo" not in losses:
        problems.append(Problem("--simpo_gamma", "has no effect without --loss_type simpo", "remove it"))
    return problems


def _shape(config: RlhfConfig, kind: str) -> list[Problem]:
    problems: list[Problem] = []
    for name in ("streaming", "lazy_tokenize", "cached_dataset", "cached_val_dataset"):
        if config.given(name):
            problems.append(Problem(f"--{name}", f"{kind} encodes its rows before training", "remove it"))
    if config.chat.truncation_strategy == "split":
        problems.append(Problem("--truncation_strategy split", "cuts answers into pieces", "choose delete, left or right"))
    if config.chat.max_length is not None and config.chat.max_length < 2:
        problems.append(Problem("--max_length", "leaves no room for an answer", "for example --max_length 1024"))
    if config.given("packing") and config.training.packing:
        problems.append(Problem("--packing", "pairs are laid side by side without padding as it is", "remove it"))
    if kind == "rm":
        for name in ("padding_free", "per_device_token_budget"):
            if config.given(name) and getattr(config.training, name):
                problems.append(Problem(f"--{name}", "lays tokens side by side, and a reward model takes whole texts", "remove it"))
        if config.given("loss_scale"):
            problems.append(Problem("--loss_scale", "a reward model has no loss on tokens", "remove it"))
    if config.judged.disable_dropout and config.given("lora_dropout"):
        problems.append(Problem("--lora_dropout", "has no effect with --disable_dropout", "add --disable_dropout false, or remove it"))
    return problems
