"""`swift infer` without a data set: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, TextIO, cast

from swift_core.errors import EngineError, TemplateError
from swift_core.protocols import AdapterEngine, Engine, InferRequest, Message, RequestConfig, Usage

HELP = """\
Type a message and press Enter. Further words:
  /clear         forget the conversation (also: clear)
  /system TEXT   set the system message and start over
  /reset-system  go back to the first system message and start over (also: reset-system)
  /adapter NAME  answer with another adapter and start over; without a name: list them
  /multi         write one message over several lines; a line with only # ends it
  /help          this text
  /exit          leave (also: exit, quit, Ctrl-D)
Ctrl-C stops an answer.
"""
_MULTI_END = "#"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class TerminalChat:
    """One conversation with one model.

    Args:
        engine: answers.
        request: how to answer.
        stream: show the answer while it is made.
        stdin, stdout, stderr: answers go to `stdout` alone, everything else to `stderr`.
    """

    def __init__(
        self,
        engine: Engine,
        request: RequestConfig,
        *,
        stream: bool = True,
        stdin: TextIO | None = None,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        self._engine = engine
        self._request = request
        self._stream = stream
        self._stdin = stdin or sys.stdin
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self._interactive = self._stdin.isatty() and self._stdout.isatty()
        self._system: str | None = None
        self._choices = [*(engine.adapters if isinstance(engine, AdapterEngine) else []), engine.model_name]
        self._adapter = self._choices[0]
        self.messages: list[Message] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "clear": self._clear,
            "system": self._set_system,
            "reset-system": self._reset_system,
            "adapter": self._choose_adapter,
            "multi": self._multi,
            "help": self._help,
        }

    def run(self) -> int:
        """Talk until the input ends or the person leaves; return the exit code."""
        if self._interactive:
            if importlib.util.find_spec("readline") is not None:
                import readline  # noqa: F401  arrow keys and history for input()
            self._note(f"{self._adapter} is ready. /help lists what you can type.")
        while True:
            try:
                line = self._read("> ")
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._note("\nCtrl-D or /exit leaves.")
                continue
            if line is None or line.strip() in ("exit", "quit", "/exit", "/quit"):
                return 0
            self._take(line)

    def _take(self, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        command = self._commands.get(word.removeprefix("/")) if word.startswith("/") or line.strip() in ("clear", "reset-system") else None
        if command is not None:
            command(rest.strip())
        elif word.startswith("/") and word[1:].replace("-", "").isalpha() and not rest:
            self._note(f"there is no command {word}; /help lists them")
        elif line.strip():
            self._answer(line)

    def _read(self, prompt: str) -> str | None:
        """Return the next line without its end, or None at the end of the input."""
        if self._interactive:
            try:
                return input(prompt)
            except EOFError:
                self._stdout.write("\n")
                return None
        line = self._stdin.readline()
        return line.rstrip("\r\n") if line else None

    def _answer(self, question: str) -> None:
        turn: list[Message] = [*self.messages, {"role": "user", "content": question}]
        before = [Message(role="system", content=self._system)] if self._system is not None else []
        started = time.monotonic()
        try:
            adapter = self._adapter if self._adapter != self._engine.model_name else None
            text, usage = self._generate(InferRequest([*before, *turn], adapter=adapter))
        except (EngineError, TemplateError) as error:
            self._note(f"error: {error}\n/clear forgets the conversation so far")
            return
        self.messages = [*turn, {"role": "assistant", "content": text}]
        if usage is not None:
            seconds = max(time.monotonic() - started, 1e-6)
            self._note(f"[{usage.completion_tokens} tokens, {usage.completion_tokens / seconds:.1f} tokens/s]")

    def _generate(self, request: InferRequest) -> tuple[str, Usage | None]:
        if not self._stream:
            response = self._engine.infer([request], self._request)[0]
            text = response.choices[0].message.content or ""
            self._show(text + "\n")
            return text, response.usage
        pieces: list[str] = []
        usage: Usage | None = None
        # Leaving the block closes the stream, and with it the generation.
        with closing(cast(Any, self._engine.stream(request, self._request))) as deltas:
            try:
                for delta in deltas:
                    pieces.append(delta.text)
                    usage = delta.usage or usage
                    self._show(delta.text)
            except KeyboardInterrupt:
                self._note(" [stopped]")
        self._show("\n")
        return "".join(pieces), usage

    def _show(self, text: str) -> None:
        self._stdout.write(text)
        self._stdout.flush()

    def _note(self, text: str) -> None:
        dim = self._stderr.isatty()
        self._stderr.write(f"{_DIM}{text}{_PLAIN}\n" if dim else text + "\n")
        self._stderr.flush()

    def _clear(self, _: str) -> None:
        self.messages = []
        self._note("the conversation is forgotten")

    def _set_system(self, text: str) -> None:
        if not text:
            self._note("give the text after /system; /reset-system goes back to the first one")
            return
        self._system, self.messages = text, []
        self._note("the system message is set and the conversation starts over")

    def _reset_system(self, _: str) -> None:
        self._system, self.messages = None, []
        self._note("the first system message is back and the conversation starts over")

    def _choose_adapter(self, name: str) -> None:
        if name not in self._choices:
            what = f"there is no adapter {name!r}; " if name else ""
            self._note(f"{what}{', '.join(self._choices)} can answer, {self._adapter} does")
            return
        self._adapter, self.messages = name, []
        self._note(f"{name} answers now and the conversation starts over")

    def _multi(self, _: str) -> None:
        self._note(f"a line with only {_MULTI_END} ends the message")
        lines: list[str] = []
        while True:
            try:
                line = self._read(". ")
            except KeyboardInterrupt:
                self._note("\nthe message is dropped")
                return
            if line is None or line.strip() == _MULTI_END:
                break
            lines.append(line)
        if any(line.strip() for line in lines):
            self._answer("\n".join(lines))

    def _help(self, _: str) -> None:
        self._stderr.write(HELP)
