"""What all tasks over judged answers share: batches, the two models, what is kept over a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from swift_core.batching.collate import Positions
from swift_core.protocols import EncodedSample
from swift_core.scoring.scorer import Scorer
from torch import Tensor, nn

from swift_rlhf.preference.layout import AnswerBatch, lay_out, row_tokens
from swift_rlhf.preference.reference import Reference, SecondModel
from swift_rlhf.preference.samples import Answer
from swift_rlhf.preference.scoring import Scored, score_answers
from swift_rlhf.preference.totals import Totals

STATE = "task_state.json"


@dataclass(frozen=True, slots=True)
class Following:
    """How a reference model follows the trained one.

    Attributes:
        every: steps between two moves.
        share: of the trained weights in a move.
    """

    every: int
    share: float


class AnswerScores:
    """Scores answers under policy and reference.

    Args:
        reference: the reference model, or None.
        packed: lay answers side by side without padding, a pair behind one prompt.
        positions: counts the positions of a packed row with media, for models that do it in a way of their own.
        following: how the reference follows, or None.
        ld_alpha: weight of tokens past the length of the shorter answer, or None.
        weighting: whether answers weigh what the policy would have written them with.
        weight: name of the count that logged sums are divided by.
    """

    def __init__(
        self,
        reference: Reference | None,
        *,
        packed: bool,
        positions: Positions | None = None,
        following: Following | None = None,
        ld_alpha: float | None = None,
        weighting: bool = False,
        weight: str = "pairs",
    ) -> None:
        self.packed = packed
        self.totals = Totals(weight)
        self.running: dict[str, float] = {}
        self.held_to: Reference | None = reference
        self._positions = positions
        self._following = following
        self._ld_alpha, self._weighting = ld_alpha, weighting
        self._scorer: Scorer | None = None

    def collate(self, samples: Sequence[EncodedSample], *, pad_token_id: int) -> AnswerBatch:
        """Return rows as a batch."""
        return lay_out(cast(Sequence[Answer], samples), pad_token_id=pad_token_id, packed=self.packed, positions=self._positions)

    def length(self, sample: EncodedSample) -> int:
        """Return the tokens that a row puts through the model."""
        return row_tokens(cast(Answer, sample), shared=self.packed)

    def policy(self, model: nn.Module, batch: AnswerBatch) -> Scored:
        """Return the log-probabilities of the answers under the trained model."""
        if self._scorer is None or self._scorer.model is not model:
            self._scorer = Scorer(model)
        return score_answers(self._scorer, batch, ld_alpha=self._ld_alpha, weighting=self._weighting)

    def reference(self, model: nn.Module, batch: AnswerBatch) -> Tensor | None:
        """Return those under the reference model, as they were computed beforehand where they were; None without a reference."""
        if batch.reference is not None:
            return batch.reference
        return None if self.held_to is None else self.held_to.logps(model, batch, ld_alpha=self._ld_alpha)

    def end_step(self, model: nn.Module, step: int) -> dict[str, float]:
        """Join the ranks' sums, let the reference follow, and return the sums of the step."""
        if self._following is not None and step % self._following.every == 0 and isinstance(self.held_to, SecondModel):
            self.held_to.follow(model, self._following.share)
        return self.totals.close_step()

    def save_state(self, folder: Path) -> None:
        """Write what a resumed run goes on from: running means, the window of the log, a reference that has moved."""
        values = {"running": self.running, "window": self.totals.saved()}
        (folder / STATE).write_text(json.dumps(values), encoding="utf-8")
        if self._following is not None and isinstance(self.held_to, SecondModel):
            self.held_to.save(folder)

    def load_state(self, folder: Path) -> None:
        """Take it back."""
        file = folder / STATE
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self.running = values.get("running", {})
        self.totals.restore(values.get("window", {}))
        if self._following is not None and isinstance(self.held_to, SecondModel):
            self.held_to.load(folder)
