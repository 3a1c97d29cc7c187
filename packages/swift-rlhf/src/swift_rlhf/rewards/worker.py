"""The process that runs rewards which keep a core busy or may hang: it can be killed, a thread cannot.

Started as a module, it talks with the pool that started it over its own pipes: a length and a pickled message each way.
"""

from __future__ import annotations

import os
import pickle
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

HEADER = struct.Struct(">Q")


def pack(message: Any) -> bytes:
    """Return a message with its length before it."""
    body = pickle.dumps(message)
    return HEADER.pack(len(body)) + body


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until the pool closes the pipe.

    `("load", key, reference, options, plugin_files)` makes a reward, `("score", key, completion, columns)` asks it about one sample.
    A reply is `("ok", value)` or `("error", text)`.
    """
    functions: dict[str, Any] = {}
    while header := requests.read(HEADER.size):
        message = pickle.loads(requests.read(*HEADER.unpack(header)))
        try:
            reply = ("ok", _answer(functions, *message))
        except Exception as error:  # noqa: BLE001  whatever the user's function raises is told to the pool
            reply = ("error", f"{type(error).__name__}: {error}")
        replies.write(pack(reply))
        replies.flush()


def _answer(functions: dict[str, Any], kind: str, key: str, *rest: Any) -> Any:
    if kind == "load":
        from swift_core.plugins import load_plugin_files

        from swift_rlhf.rewards.functions import load_reward

        reference, options, plugin_files = rest
        load_plugin_files(plugin_files)
        functions[key] = load_reward(reference, options)
        return None
    completion, columns = rest
    return _one(functions[key], completion, columns)


def _one(function: Any, completion: str, columns: Mapping[str, Any]) -> Any:
    values = function([completion], **columns)
    if len(values) != 1:
        raise ValueError(f"{len(values)} rewards for one sample")
    return None if values[0] is None else float(values[0])


if __name__ == "__main__":
    # What a reward prints must not end up between the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, replies)
