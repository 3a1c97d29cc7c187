"""Stopping a run whose evaluations no longer get better."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

logger = logging.getLogger(__name__)


class EarlyStopping(TrainerCallback):
    """Ends training after so many evaluations in a row without a better metric.

    It counts in the log of the run, so a resumed run counts on.

    Args:
        patience: evaluations to wait.
        metric: name of the metric, with or without `eval_`.
        greater_is_better: whether a larger value is better.
    """

    def __init__(self, patience: int, metric: str, *, greater_is_better: bool) -> None:
        self._patience = patience
        self._name = metric if metric.startswith("eval_") else f"eval_{metric}"
        self._greater = greater_is_better

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **context: Any) -> None:
        """Count the evaluations since the best one, this one included."""
        values = [line[self._name] for line in state.log_history if isinstance(line.get(self._name), float | int)]
        if not values:
            return
        best = max(values) if self._greater else min(values)
        waited = len(values) - 1 - values.index(best)
        if waited >= self._patience:
            control.should_training_stop = True
            logger.warning(
                "step %s: %s has not got better in %d evaluations (best %.5g): training ends here (--early_stop_interval)",
                *(state.global_step, self._name, waited, best),
            )
