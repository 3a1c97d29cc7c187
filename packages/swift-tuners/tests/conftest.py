"""What the tests of tuners have in common."""

from __future__ import annotations

import os

# PEFT's BOFT imports setuptools, which refuses to start where a library has imported Python's own distutils before.
os.environ.setdefault("SETUPTOOLS_USE_DISTUTILS", "stdlib")
