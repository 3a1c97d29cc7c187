"""Settings of `swift rlhf`: one file for each family of algorithms."""

from swift_rlhf.config.command import RlhfConfig

__all__ = ["RlhfConfig"]
