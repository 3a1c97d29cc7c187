"""Norms, rotary positions and MLPs by the Triton kernels of liger-kernel."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from swift_core.errors import MissingDependencyError, ModelError
from swift_core.models.modules import unwrap


def use_liger(model: nn.Module, *, device: str) -> None:
    """Put Liger's kernels into a loaded model, in place; the loss stays with the scorer.

    Raises:
        ModelError: on a CPU, or when the library does not know the architecture.
        MissingDependencyError: when the library is not installed.
    """
    if device == "cpu":
        raise ModelError("--use_liger_kernel: the kernels are written in Triton and need an accelerator", fix="remove it")
    if importlib.util.find_spec("liger_kernel") is None:
        raise MissingDependencyError("liger_kernel", needed_for="--use_liger_kernel", install="swift-core[liger]")
    import liger_kernel.transformers.monkey_patch as liger  # pyright: ignore[reportMissingImports]

    base: Any = unwrap(model)
    apply = liger.MODEL_TYPE_TO_APPLY_LIGER_FN.get(base.config.model_type)
    if apply is None:
        known = ", ".join(sorted(liger.MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise ModelError(
            f"--use_liger_kernel: liger-kernel has nothing for the architecture {base.config.model_type!r}", fix=f"it has {known}"
        )
    liger._apply_liger_kernel_to_instance(model=base, cross_entropy=False, fused_linear_cross_entropy=False)
