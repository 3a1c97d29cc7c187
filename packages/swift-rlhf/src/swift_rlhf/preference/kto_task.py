"""KTO: good answers made likelier and bad ones less likely, without pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from swift_core.protocols import EncodedSample
from torch import Tensor, nn

from swift_rlhf.config.command import RlhfConfig
from swift_rlhf.losses import kto_kl, kto_loss
from swift_rlhf.preference.answers import AnswerScores
from swift_rlhf.preference.layout import AnswerBatch
from swift_rlhf.preference.scoring import at_rest
from swift_rlhf.preference.totals import summed

Part = tuple[Tensor, Tensor]


class KtoTask:
    """A loss over single answers, a mean over the answers of a step.

    The distance of policy and reference is that of answers set to prompts they do not belong to, over all micro-batches of the
    step and all ranks, so it is found in a pass of its own before the first of them.

    Args:
        config: loss and weights.
        scores: policy and reference.
    """

    unit = "answers"

    def __init__(self, config: RlhfConfig, scores: AnswerScores) -> None:
        kind: Any = config.task.loss_type[0]
        self.packs = scores.packed
        self._scores = scores
        self._kl: Tensor | None = None
        self._beta = config.task.beta or 0.1
        self._settings: dict[str, Any] = {
            "loss_type": kind,
            "beta": self._beta,
            "desirable_weight": config.kto.desirable_weight,
            "undesirable_weight": config.kto.undesirable_weight,
        }

    def weight(self, sample: EncodedSample) -> int:
        """Return 1: the loss is a mean over answers."""
        return 1

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens that an answer puts through the model."""
        return self._scores.length(sample)

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> AnswerBatch:
        """Return answers as a batch."""
        return self._scores.collate(samples, pad_token_id=pad_token_id)

    def begin_step(self, model: nn.Module, batches: Sequence[AnswerBatch]) -> None:
        """Find out how far the policy is from the reference."""
        device = next(model.parameters()).device
        total = torch.zeros(2, dtype=torch.float64, device=device)
        for batch in batches:
            found = self._distance(model, batch.to(device))
            if found is not None and batch.live:
                total += found
        total = summed(total)
        self._kl = (total[0] / total[1].clamp_min(1)).clamp_min(0) if self._needs_kl else None

    @property
    def _needs_kl(self) -> bool:
        return self._settings["loss_type"] == "kto"

    def _distance(self, model: nn.Module, batch: AnswerBatch) -> Tensor | None:
        """Return the summed log-ratio of unrelated answers and their number, `[2]`."""
        if batch.unrelated is None or not self._needs_kl:
            return None
        with at_rest(model):
            reference = self._scores.reference(model, batch.unrelated)
            assert reference is not None
            found = kto_kl(self._scores.policy(model, batch.unrelated).logps.double(), reference)
        return torch.stack([found.total, found.weight]).double()

    def loss(self, model: nn.Module, batch: AnswerBatch) -> Tensor:
        """Return the summed loss over the answers of a batch."""
        assert batch.labels is not None
        reference = self._scores.reference(model, batch)
        logps = self._scores.policy(model, batch).logps
        assert reference is not None
        reference = reference.to(logps)
        kl = None if self._kl is None else self._kl.to(logps)
        losses = kto_loss(logps, reference, batch.labels, kl=kl, **self._settings)
        sums = _sums(logps.detach(), reference, batch.labels, self._beta)
        self._scores.totals.add(sums | ({} if kl is None else {"kl": kl * len(losses)}), live=batch.live)
        return losses.sum() if batch.live else losses.sum() * 0

    def end_step(self, model: nn.Module, step: int) -> None:
        """Move what follows the training."""
        self._scores.end_step(model, step)

    def log_values(self) -> dict[str, float]:
        """Return rewards and log-probabilities of good and bad answers, and the kl, means since the last call."""
        return _with_margin(self._scores.totals.means())

    def measure(self, model: nn.Module, batch: AnswerBatch) -> Part:
        """Return log-probabilities and label of each answer `[answers, 3]`, and the summed log-ratio of unrelated ones `[2]`."""
        assert batch.labels is not None
        reference = self._scores.reference(model, batch)
        assert reference is not None
        logps = self._scores.policy(model, batch).logps
        rows = torch.stack([logps.double(), reference.double(), batch.labels.double()], dim=1).cpu()
        found = self._distance(model, batch)
        return rows, torch.zeros(2, dtype=torch.float64) if found is None else found.cpu()

    def metrics(self, parts: Iterable[Part]) -> dict[str, float]:
        """Return `loss`, rewards of good and bad answers, `accuracy` and `kl`; an answer counts as right when its reward has the
        sign that its label asks for.
        """  # noqa: D205
        rows, distances = (list(column) for column in zip(*parts, strict=True))
        logps, reference, labels = torch.cat(rows).unbind(1)
        total = torch.stack(distances).sum(0)
        kl = (total[0] / total[1].clamp_min(1)).clamp_min(0) if self._needs_kl else None
        loss = kto_loss(logps, reference, labels.bool(), kl=kl, **self._settings).mean()
        sums = _sums(logps, reference, labels.bool(), self._beta)
        means = {name: float(sums[name] / sums[f"{name}/count"]) for name in sums if sums.get(f"{name}/count")}
        right = ((logps > reference) == labels.bool()).double().mean()
        return {
            "loss": float(loss),
            **_with_margin(means),
            "rewards/accuracies": float(right),
            **({"kl": float(kl)} if kl is not None else {}),
        }

    def save(self, folder: Path) -> None:
        """Write nothing: weights and tokenizer say everything."""

    def save_state(self, folder: Path) -> None:
        """Write what a resumed run goes on from."""
        self._scores.save_state(folder)

    def load_state(self, folder: Path) -> None:
        """Take it back."""
        self._scores.load_state(folder)


def _sums(logps: Tensor, reference: Tensor, labels: Tensor, beta: float) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {"answers": logps.new_tensor(len(logps))}
    for name, chosen in (("chosen", labels), ("rejected", ~labels)):
        count = chosen.sum()
        found |= {f"rewards/{name}": (beta * (logps - reference))[chosen].sum(), f"rewards/{name}/count": count}
        found |= {f"logps/{name}": logps[chosen].sum(), f"logps/{name}/count": count}
    return found


def _with_margin(means: dict[str, float]) -> dict[str, float]:
    chosen, rejected = means.get("rewards/chosen"), means.get("rewards/rejected")
    return means if chosen is None or rejected is None else {**means, "rewards/margins": chosen - rejected}
