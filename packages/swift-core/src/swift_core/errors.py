"""The error tree: every failure a user can meet carries what happened and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SwiftError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} (fix: {self.fix})" if self.fix else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (data workers, ranks): keyword-only state must survive pickling.
        return (_rebuild, (type(self), dict(self.__dict__)))


def _rebuild(kind: type[SwiftError], state: dict[str, object]) -> SwiftError:
    error = kind.__new__(kind)
    Exception.__init__(error, state.get("message", ""))
    error.__dict__.update(state)
    return error


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration.

    Attributes:
        where: the flag, `file:line` or key concerned.
        what: what was given and why it is refused.
        fix: what to do instead.
    """

    where: str
    what: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" (fix: {self.fix})" if self.fix else "")


class ConfigError(SwiftError, ValueError):
    """Raised with every problem of a configuration at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[object, ...]:
        return (ConfigError, (self.problems,))


class RegistryError(SwiftError, LookupError):
    """Raised for an unknown or duplicate registry name."""

    exit_code = 2


class PluginError(SwiftError, ImportError):
    """Raised when a plugin file or entry point cannot be loaded."""


class MissingDependencyError(SwiftError, ImportError):
    """Raised when an optional library is absent; the fix is the exact pip line."""

    def __init__(self, library: str, *, needed_for: str, install: str) -> None:
        super().__init__(f"{needed_for} needs the library {library!r}, which is not installed", fix=f"pip install '{install}'")


class NotFoundError(SwiftError, FileNotFoundError):
    """Raised when a model, data set, file or checkpoint is not where it was said to be."""


class HubError(SwiftError, OSError):
    """Raised when a hub answers with an error or cannot be reached."""


class OfflineError(HubError):
    """Raised when something is not on this machine and connections are switched off."""


class DataError(SwiftError, ValueError):
    """Raised for bad rows or a data set that cannot train anything.

    Attributes:
        location: `file:line` of the first bad row, where one is known.
    """

    def __init__(self, message: str, *, location: str | None = None, fix: str | None = None) -> None:
        super().__init__(f"{location}: {message}" if location else message, fix=fix)
        self.location = location


class TemplateError(SwiftError, ValueError):
    """Raised when messages cannot be rendered or masked."""


class ModelError(SwiftError, ValueError):
    """Raised when a model folder cannot be loaded or adapted."""


class CheckpointError(SwiftError, RuntimeError):
    """Raised when a checkpoint is incomplete, damaged or does not fit the run."""


class TrainingError(SwiftError, RuntimeError):
    """Raised when training cannot go on, for example on a non-finite loss."""


class OutOfMemory(TrainingError):
    """Raised when a device or the machine has no memory left; the message holds a table of what is taken."""

    exit_code = 3


class EngineError(SwiftError, RuntimeError):
    """Raised by inference engines."""


class RequestError(EngineError):
    """Raised for a request that cannot be answered as it was asked, such as one longer than the context.

    Attributes:
        code: the OpenAI error code, where there is one, such as `context_length_exceeded`.
    """

    def __init__(self, message: str, *, fix: str | None = None, code: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.code = code


class LaunchError(SwiftError, RuntimeError):
    """Raised when worker processes cannot be started or one of them died."""


class Interrupted(SwiftError):
    """Raised after a signal once the state is saved; `exit_code` is 128 + signal number."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
