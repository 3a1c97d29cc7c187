"""What the Hugging Face and ModelScope hubs have in common: what is skipped, and which failure becomes which error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from swift_core.errors import HubError, NotFoundError, OfflineError

# Pickles can run code when loaded, and the rest is the same weights for other programs.
SKIPPED_IN_MODELS = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5", "*.ot", "*.tflite", "*.gguf", "*.onnx", "*.onnx_data",
    "original/*", "onnx/*", "openvino/*", "coreml/*",
)  # fmt: skip

RETRIED = frozenset({429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is being fetched, for messages.

    Attributes:
        prefix: `hf` or `ms`.
        hub: readable name of the hub.
        token_name: environment variable that holds its token.
        page: address of the repository.
    """

    prefix: Literal["hf", "ms"]
    hub: str
    repo_id: str
    kind: Literal["model", "dataset"]
    revision: str | None
    token_name: str
    page: str

    @property
    def id(self) -> str:
        """Return the id as a user writes it."""
        return f"{self.prefix}::{self.repo_id}" + (f"@{self.revision}" if self.revision else "")

    @property
    def command(self) -> str:
        """Return the command that fetches it."""
        return f"swift hub path {self.id}" + (" --kind dataset" if self.kind == "dataset" else "")

    def offline(self, reason: str = "") -> OfflineError:
        """Return the error for something that is not on this machine."""
        detail = reason or f"{self.kind} {self.id} is not on this machine"
        return OfflineError(f"{detail} and connections are off", fix=f"run `{self.command}` once with a connection")

    def absent(self) -> NotFoundError:
        """Return the error for a repository that the hub does not know, or does not show without a token."""
        other = "ms" if self.prefix == "hf" else "hf"
        return NotFoundError(
            f"{self.hub} has no {self.kind} {self.repo_id!r}, or it is private",
            fix=f"check the id; set {self.token_name} or --hub_token if it is private; or try {other}::{self.repo_id}",
        )

    def absent_revision(self) -> NotFoundError:
        """Return the error for a branch, tag or commit that does not exist."""
        return NotFoundError(
            f"{self.hub} has {self.kind} {self.repo_id!r} but no revision {self.revision!r}",
            fix=f"choose one at {self.page}, or leave it out",
        )

    def weightless(self, holds: str) -> NotFoundError:
        """Return the error for a model repository without safetensors weights."""
        fix = f"look for a safetensors version at {self.page}"
        if "gguf" in holds:
            fix += ", or download one .gguf file and give its path to --model"
        return NotFoundError(f"{self.hub} model {self.repo_id!r} has no safetensors weights ({holds})", fix=fix)

    def refused(self, status: int) -> HubError | NotFoundError:
        """Return the error for an HTTP status."""
        what = f"{self.hub} answered {status} for {self.kind} {self.repo_id!r}"
        if status == 404:
            return self.absent()
        if status == 401:
            return HubError(f"{what}: not logged in, or the token is wrong", fix=f"set {self.token_name} or --hub_token to a valid token")
        if status == 403:
            return HubError(f"{what}: access denied", fix=f"ask for access at {self.page}, then set {self.token_name} or --hub_token")
        if status == 429:
            return HubError(
                f"{what}: too many requests", fix=f"wait a few minutes, or set {self.token_name} or --hub_token for a higher limit"
            )
        other = "ms" if self.prefix == "hf" else "hf"
        return HubError(f"{what}: the hub has a problem", fix=f"try again later, or try {other}::{self.repo_id}")

    def unwritable(self, status: int) -> HubError:
        """Return the error for an upload that the hub refuses with an HTTP status."""
        what, owner = f"{self.hub} answered {status} to the upload to {self.repo_id!r}", self.repo_id.split("/")[0]
        if status in (401, 403):
            return HubError(
                f"{what}: the token is missing, wrong, or may not write there",
                fix=f"set {self.token_name} or --hub_token to a token with the right to write; check that {owner!r} is you "
                "or an organisation of yours",
            )
        return HubError(f"{what}", fix="run the same command again: what was finished before is kept")

    def unreachable(self, endpoint: str, reason: str) -> HubError:
        """Return the error for a connection that could not be made or was cut."""
        variable = "HF_ENDPOINT" if self.prefix == "hf" else "MODELSCOPE_ENDPOINT"
        return HubError(
            f"{self.hub} at {endpoint} could not deliver {self.kind} {self.repo_id!r}: {reason}",
            fix=f"check the connection or proxy, or set {variable} to a mirror; what was downloaded is kept and resumed",
        )


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."
