"""`python -m lossdsl` is `lossdsl`."""

from __future__ import annotations

import sys

from lossdsl.cli import main

if __name__ == "__main__":
    sys.exit(main())
