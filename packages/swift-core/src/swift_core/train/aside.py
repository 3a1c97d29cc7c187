"""Result folders that appear whole or not at all, and replace only what may be replaced."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from swift_core.errors import CheckpointError
from swift_core.train.checkpoint import seal

EXPORT_FILE = "export.json"
_ASIDE = ".writing-"
_REPLACED = ".replaced-"
# What shows that a folder was made by a program and can be made again.
_MARKS = ("config.json", "adapter_config.json", EXPORT_FILE)


def check_target(target: Path, *, exist_ok: bool, sources: Sequence[Path]) -> None:
    """Check that a result may be written to a folder.

    Raises:
        CheckpointError: when it exists and may not be replaced, or holds one of the sources.
    """
    if not target.exists():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not exist_ok:
        raise CheckpointError(f"{str(target)!r} exists already", fix="choose another --output_dir, or replace it with --exist_ok")
    resolved = target.resolve()
    for source in sources:
        if resolved == source.resolve() or resolved in source.resolve().parents:
            what = f"{str(target)!r} holds {str(source)!r}, which is being merged or converted"
            raise CheckpointError(what, fix="choose another --output_dir")
    if not any((target / name).is_file() for name in _MARKS):
        # A mistyped folder must not be emptied.
        raise CheckpointError(f"{str(target)!r} exists and is no model folder, so it is not replaced", fix="choose another --output_dir")


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that takes its place when the block ends well and vanishes otherwise.

    Raises:
        CheckpointError: when it cannot be written.
    """
    aside, replaced = target.with_name(_ASIDE + target.name), target.with_name(_REPLACED + target.name)
    try:
        for left_over in (aside, replaced):
            if left_over.exists():
                shutil.rmtree(left_over)
        aside.mkdir(parents=True)
        yield aside
        seal(aside)
        if target.exists():
            target.rename(replaced)
        aside.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{target} could not be written: {error}", fix="free some space or choose another --output_dir") from error
    finally:
        if aside.exists():
            shutil.rmtree(aside)
