"""Which way a model's answers are written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from swift_core.decoding.decoder import obstacle

from swift_infer.engines.generated import GenerateRunner
from swift_infer.engines.lines import Job
from swift_infer.engines.paged import Loaded, PagedRunner
from swift_infer.engines.sampling import special_wishes
from swift_infer.engines.scheduler import Work

logger = logging.getLogger(__name__)


class ChosenRunner:
    """Writes answers with swift's own decoding where the model allows it, and through transformers' `generate` otherwise.

    Whether it does is tried out on the first prompt. Requests with media always take the second way.

    Args:
        loaded: model and adapters.
        pad_id: token that fills short rows.
        max_rows: most rows of a batch.
    """

    def __init__(self, loaded: Loaded, *, pad_id: int | None, max_rows: int) -> None:
        self._loaded = loaded
        self._generate = GenerateRunner(loaded, pad_id=pad_id, max_rows=max_rows)
        self._paged: PagedRunner | None = None
        self._tried = False
        self._stack = ExitStack()

    def fits(self, job: Job, work: Work) -> bool:
        """Say whether a request can run beside others."""
        return self._loaded.named.mixes(self._loaded.model) or all(other.adapter == job.adapter for other, _ in work)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Surround the time in which answers are written."""
        with ExitStack() as self._stack:
            self._enter()
            yield

    def _enter(self) -> None:
        if self._paged is not None:
            self._stack.enter_context(self._paged.session())

    def renew(self) -> None:
        """Look at the model anew, which adapters may have wrapped."""
        if self._paged is not None:
            self._paged.renew()

    def begin(self, jobs: Sequence[Job]) -> Work:
        """Write the first token of every answer, or all of them."""
        self._try(jobs[0])
        plain = [job for job in jobs if self._paged is None or job.prompt.model_inputs]
        if plain:
            self._stack.close()  # generate has attention and a cache of its own
            self._generate.begin(plain)
            self._enter()
        rest = [job for job in jobs if job not in plain]
        return self._paged.begin(rest) if self._paged is not None and rest else []

    def step(self, work: Work) -> None:
        """Write one token of each answer."""
        assert self._paged is not None
        self._paged.step(work)

    def leave(self, work: Work, kept: Sequence[int]) -> None:
        """Forget all rows but these."""
        if self._paged is not None:
            self._paged.leave(work, kept)

    def _try(self, job: Job) -> None:
        if self._tried:
            return
        self._tried = True
        model = self._loaded.model
        wishes = special_wishes(getattr(model, "generation_config", None))
        with self._loaded.named.using(model, [None]):
            why = f"its generation_config sets {', '.join(wishes)}" if wishes else obstacle(model, job.prompt.input_ids)
        if why is None:
            self._paged = PagedRunner(self._loaded)
            self._enter()
            return
        logger.warning(
            "requests run batch by batch through transformers' generate, since continuous batches do not fit this model: %s", why
        )
