"""What several files share: a tiny multimodal model of a kind is made once in a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says what else the machine does, not whether the code is right.
settings.register_profile("any_machine", deadline=None)
settings.load_profile("any_machine")


@pytest.fixture(scope="session")
def media_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny multimodal models, each in one of its own; who needs one that is not there makes it."""
    return tmp_path_factory.mktemp("media_models")
