"""`python -m swift_core` is `swift`; torchrun starts workers this way."""

import sys

from swift_core.cli.main import main

sys.exit(main())
