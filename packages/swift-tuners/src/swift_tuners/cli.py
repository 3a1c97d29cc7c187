"""What the commands of this package call."""

from __future__ import annotations

import sys

from swift_tuners.config import MergeConfig


def merge_lora(config: MergeConfig) -> None:
    """Merge an adapter into its base model and say how well the result agrees."""
    from swift_tuners.merge.merging import merge

    report = merge(config)
    sys.stdout.write(
        f"base model            {report.base}\n"
        f"adapter               {report.adapter}\n"
        f"effect of the adapter {report.effect}\n"
        f"merged / unmerged     {report.merged}\n"
        f"loaded again / merged {report.reloaded}\n"
        f"merged model ({report.dtype}) written to {report.folder}\n"
        f"try it: swift infer --model {report.folder}\n"
    )
