"""What runs in vLLM's worker processes: weights from a safetensors file, through vLLM's own weight transfer.

vLLM imports this module in each of its workers (`worker_extension_cls`) before it makes the transfer engine that is registered here.
"""

# The library needs an environment of its own, which is not the one that types are checked in.
# pyright: reportMissingImports=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from swift_core.errors import MissingDependencyError

try:
    from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
except ImportError as error:
    raise MissingDependencyError("vllm", needed_for="weights of its workers", install="swift-infer[vllm]") from error

BACKEND = "swift_safetensors"


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing: files need no connection."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Where the weights are."""

    path: str


class SafetensorsTransfer(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Takes weights from files that the server has written on this machine."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Do nothing."""

    def start_weight_update(self) -> None:
        """Prepare layers for weights as checkpoints name them."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Load the tensors of a file."""
        with safe_open(update_info.path, "pt") as file:
            model: Any = self.model
            model.load_weights((name, file.get_tensor(name).to(self.device)) for name in file.keys())  # noqa: SIM118  no mapping

    def finish_weight_update(self) -> None:
        """Bring the layers back into the form that they run in."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Do nothing."""


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, SafetensorsTransfer)


class WorkerExtension:
    """Makes vLLM import this module."""
