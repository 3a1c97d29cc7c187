"""The terms that losses of the DPO family are made of: one number for each pair.

In their formulas `r = log p_policy(answer) - log p_ref(answer)` of the better (w) and the worse (l) answer, `z = beta (r_w - r_l)`
after the f-divergence, `b` is beta, `n` a length in tokens, `e` the label smoothing and `s` the logistic function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu


@dataclass(frozen=True, slots=True)
class Pairs:
    """What the terms are made from; all tensors `[pairs]`.

    Attributes:
        chosen, rejected: log-ratios of policy to reference in nats.
        chosen_score, rejected_score: the same after the f-divergence.
        policy_margin, ref_margin: log-probability of the better answer less that of the worse one.
        chosen_lengths, rejected_lengths: tokens of the answers; 1 where no term needs them.
        chosen_nll: cost of the better answer in nats per token of an average answer.
        beta: how strongly the policy is held to the reference.
        smoothing: share of labels that may be the wrong way round.
        tau: temperature of discopop.
        bco_delta: mean reward that bco_pair compares with.
        population: values of the whole step that aot sorts among; None sorts these pairs alone.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_score: Tensor
    rejected_score: Tensor
    policy_margin: Tensor
    ref_margin: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    chosen_nll: Tensor
    beta: float
    smoothing: float
    tau: float
    bco_delta: Tensor | float
    population: tuple[Tensor, Tensor] | None

    @property
    def z(self) -> Tensor:
        """Return the scaled difference of scores."""
        return self.beta * (self.chosen_score - self.rejected_score)

    @property
    def normalized_difference(self) -> Tensor:
        """Return the difference of scores per token."""
        return self.chosen_score / self.chosen_lengths - self.rejected_score / self.rejected_lengths


def smoothed(z: Tensor, smoothing: float) -> Tensor:
    """Return `-(1 - e) log s(z) - e log s(-z)`."""
    plain = -logsigmoid(z)
    return plain if not smoothing else (1 - smoothing) * plain - smoothing * logsigmoid(-z)


def _sigmoid(pairs: Pairs) -> Tensor:
    """Return `-(1 - e) log s(z) - e log s(-z)` (Rafailov et al. 2023)."""
    return smoothed(pairs.z, pairs.smoothing)


def _hinge(pairs: Pairs) -> Tensor:
    """Return `max(0, 1 - z)` (Zhao et al. 2023)."""
    return relu(1 - pairs.z)


def _ipo(pairs: Pairs) -> Tensor:
    """Return `(r_w / n_w - r_l / n_l - 1 / (2 beta))^2` (Azar et al. 2023)."""
    return (pairs.normalized_difference - 1 / (2 * pairs.beta)).square()


def _robust(pairs: Pairs) -> Tensor:
    """Return `(-(1 - e) log s(z) + e log s(-z)) / (1 - 2 e)` (Chowdhury et al. 2024)."""
    share = pairs.smoothing
    return (-(1 - share) * logsigmoid(pairs.z) + share * logsigmoid(-pairs.z)) / (1 - 2 * share)


def _exo_pair(pairs: Pairs) -> Tensor:
    """Return `s(z) (log s(z) - log(1 - e)) + s(-z) (log s(-z) - log e)` with e above 0 (Ji et al. 2024)."""
    z, share = pairs.z, pairs.smoothing
    better = z.sigmoid() * (logsigmoid(z) - math.log1p(-share))
    return better + (-z).sigmoid() * (logsigmoid(-z) - math.log(share))


def _nca_pair(pairs: Pairs) -> Tensor:
    """Return `-log s(b r_w) - log s(-b r_w) / 2 - log s(-b r_l) / 2` (Chen et al. 2024)."""
    better, worse = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -logsigmoid(better) - 0.5 * logsigmoid(-better) - 0.5 * logsigmoid(-worse)


def _bco_pair(pairs: Pairs) -> Tensor:
    """Return `-log s(b r_w - d) - log s(d - b r_l)` with a mean reward d (Jung et al. 2024)."""
    better, worse = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -logsigmoid(better - pairs.bco_delta) - logsigmoid(pairs.bco_delta - worse)


def _sppo_hard(pairs: Pairs) -> Tensor:
    """Return `(r_w - 1 / (2 b))^2 + (r_l + 1 / (2 b))^2` (Wu et al. 2024)."""
    goal = 1 / (2 * pairs.beta)
    return (pairs.chosen - goal).square() + (pairs.rejected + goal).square()


def _apo_zero(pairs: Pairs) -> Tensor:
    """Return `s(-b r_w) + s(b r_l)` (D'Oosterlinck et al. 2024)."""
    return (-pairs.beta * pairs.chosen).sigmoid() + (pairs.beta * pairs.rejected).sigmoid()


def _apo_down(pairs: Pairs) -> Tensor:
    """Return `s(b r_w) + s(-z)` (D'Oosterlinck et al. 2024)."""
    return (pairs.beta * pairs.chosen).sigmoid() + (-pairs.beta * (pairs.chosen - pairs.rejected)).sigmoid()


def _discopop(pairs: Pairs) -> Tensor:
    """Return `(1 - m) (-log s(z)) + m e^-z` with `m = s(z / tau)` (Lu et al. 2024)."""
    z = pairs.z
    blend = (z / pairs.tau).sigmoid()
    # Where the blend is 0 the exponential has no say, and must not turn it into inf * 0.
    exponential = torch.where(blend > 0, (-z).clamp_max(80).exp(), 0)
    return (1 - blend) * -logsigmoid(z) + blend * exponential


def _sigmoid_norm(pairs: Pairs) -> Tensor:
    """Return `-log s(beta (r_w / n_w - r_l / n_l))`."""
    return -logsigmoid(pairs.beta * pairs.normalized_difference)


def _sft(pairs: Pairs) -> Tensor:
    """Return the cost of the better answer per token."""
    return pairs.chosen_nll


def _aot(pairs: Pairs) -> Tensor:
    """Return the sigmoid loss of margins less those of the reference, both sorted (Melnyk et al. 2024)."""
    margin = pairs.policy_margin
    if pairs.population is None:
        partner = pairs.ref_margin.sort().values[_ranks(margin, margin)]
    else:
        policy, reference = pairs.population
        partner = reference.sort().values[_ranks(margin, policy)]
    return smoothed(pairs.beta * (margin - partner), pairs.smoothing)


def _aot_unpaired(pairs: Pairs) -> Tensor:
    """Return the sigmoid loss of log-ratios of better less worse answers, both sorted (Melnyk et al. 2024)."""
    if pairs.population is None:
        partner = pairs.rejected.sort().values[_ranks(pairs.chosen, pairs.chosen)]
        return smoothed(pairs.beta * (pairs.chosen - partner), pairs.smoothing)
    chosen, rejected = pairs.population
    of_chosen = smoothed(pairs.beta * (pairs.chosen - rejected.sort().values[_ranks(pairs.chosen, chosen)]), pairs.smoothing)
    of_rejected = smoothed(pairs.beta * (chosen.sort().values[_ranks(pairs.rejected, rejected)] - pairs.rejected), pairs.smoothing)
    # Each term of the sorted loss shows up twice, once for each side, which may sit in different micro-batches: the value is
    # halved, the gradient is not, since each side is constant in the term of the other.
    both = of_chosen + of_rejected
    return both - both.detach() / 2


def _ranks(values: Tensor, population: Tensor) -> Tensor:
    if values is population:
        return values.detach().argsort(stable=True).argsort(stable=True)
    ordered = population.detach().sort().values
    return torch.searchsorted(ordered, values.detach().contiguous()).clamp_max(len(ordered) - 1)


TERMS: dict[str, Callable[[Pairs], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
    "sft": _sft,
}
NEED_LENGTHS = frozenset({"ipo", "sigmoid_norm"})
SMOOTHED = frozenset({"sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"})
OF_SCORES = frozenset({"sigmoid", "hinge", "ipo", "robust", "exo_pair", "discopop", "sigmoid_norm"})
SORTED = frozenset({"aot", "aot_unpaired"})
