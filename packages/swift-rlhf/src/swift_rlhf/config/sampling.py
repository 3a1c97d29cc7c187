"""How answers are sampled during a run."""

from __future__ import annotations

from swift_core.config.fields import Section, option


class SamplingSection(Section):
    """Sampling options."""

    max_completion_length: int = option(512, "most tokens of an answer", basic=True, ge=1)
    temperature: float = option(0.9, "divides the logits that answers are sampled from", basic=True, gt=0)
