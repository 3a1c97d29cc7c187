"""Settings that algorithms of several families read."""

from __future__ import annotations

from swift_core.config.fields import Section, option

from swift_rlhf.specs import TASKS


class RlhfSection(Section):
    """RLHF options."""

    rlhf_type: str = option("dpo", f"algorithm: {', '.join(spec.name for spec in TASKS)}, or one of a package of yours", basic=True)
    beta: float | None = option(
        None, "weight of the distance from the reference model; default: as usual for the algorithm", basic=True, ge=0
    )
    loss_type: list[str] = option([], "variant of the algorithm's loss; default: the algorithm's first", basic=True)
    ref_model: str | None = option(None, "model to stay close to; default: the model as it was before training")
    ref_model_type: str | None = option(None, "family of --ref_model; default: found out from its files")
    ref_model_revision: str | None = option(None, "branch, tag or commit of --ref_model on the hub")
    ref_adapters: list[str] = option([], "adapter folders on top of the reference model")

    @property
    def task_type(self) -> str:
        """Return how the model is loaded."""
        return "causal_lm"
