"""Distance of a student's next-token distribution from a teacher's (GKD, Agarwal et al. 2024)."""

from __future__ import annotations

import math

import torch
from swift_core.errors import TrainingError
from torch import Tensor

from swift_rlhf.losses.reference_free import log1mexp
from swift_rlhf.losses.tokens import wide

_FLOOR = -1e4  # e^-10000 is 0 in every number type


def generalized_jsd(student_logits: Tensor, teacher_logits: Tensor, *, beta: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Return the divergence at each token over the whole vocabulary, in nats.

    With student s, teacher t and `m = (1 - beta) s + beta t`: beta 0 is KL(t || s), beta 1 KL(s || t), and in between it is
    `beta KL(t || m) + (1 - beta) KL(s || m)`. The ends are switches, not limits: the divergence between goes to 0 there.

    Args:
        student_logits: `[tokens, vocabulary]`.
        teacher_logits: `[tokens, vocabulary]`, without gradient. Where one vocabulary is padded to be longer, the surplus is left out.
        beta: from forward (0) to reverse (1).
        temperature: divides the logits of both.

    Returns:
        `[tokens]`, float32 or wider.

    Raises:
        TrainingError: for a beta outside [0, 1] or a temperature that is not positive.
    """
    _check(beta, temperature)
    size = min(student_logits.shape[-1], teacher_logits.shape[-1])
    student = (wide(student_logits[..., :size]) / temperature).log_softmax(-1)
    teacher = (wide(teacher_logits[..., :size]).detach() / temperature).log_softmax(-1)
    return _divergence(student, teacher, beta)


def generalized_jsd_topk(
    student_logits: Tensor,
    teacher_logps: Tensor,
    teacher_ids: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    tail: bool = True,
) -> Tensor:
    """Return the divergence at each token where only the teacher's likeliest tokens are known, in nats.

    With `tail` all other tokens are one further event, so that nothing is renormalised: a lower bound of the divergence over the
    vocabulary, 0 only when the student gives the known tokens their probabilities. Without it, both are renormalised over them.

    Args:
        student_logits: `[tokens, vocabulary]`.
        teacher_logps: log-probabilities of the teacher at its own temperature, `[tokens, k]`; -inf where there are fewer than k.
        teacher_ids: the tokens they belong to, `[tokens, k]`, integers.
        beta: as in `generalized_jsd`.
        temperature: divides the student's logits; the teacher's log-probabilities are taken as they are.
        tail: whether the other tokens count as one event.

    Returns:
        `[tokens]`, float32 or wider.

    Raises:
        TrainingError: for a beta outside [0, 1] or a temperature that is not positive.
    """
    _check(beta, temperature)
    absent = teacher_logps.isneginf()
    # An absent place must not point at a token of its own.
    ids = teacher_ids.masked_fill(absent, 0)
    student = (wide(student_logits) / temperature).log_softmax(-1).gather(-1, ids).masked_fill(absent, -torch.inf)
    teacher = wide(teacher_logps).detach()
    if tail:
        student, teacher = (torch.cat([each, _rest(each)], dim=-1) for each in (student, teacher))
    else:
        student, teacher = (each - each.logsumexp(-1, keepdim=True) for each in (student, teacher))
    return _divergence(student, teacher, beta)


def _rest(logps: Tensor) -> Tensor:
    total = logps.logsumexp(-1, keepdim=True)
    return log1mexp(total)


def _divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    # A probability of 0 on both sides must add nothing, and -inf - -inf would be NaN.
    student, teacher = student.clamp_min(_FLOOR), teacher.clamp_min(_FLOOR)
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum(-1)


def _check(beta: float, temperature: float) -> None:
    if not 0 <= beta <= 1:
        raise TrainingError(f"beta {beta} is outside [0, 1]", fix="0 is KL(teacher || student), 1 KL(student || teacher)")
    if temperature <= 0:
        raise TrainingError(f"temperature {temperature} is not positive", fix="for example 1")
