"""``python -m slimline``."""

from __future__ import annotations

import sys

from slimline.cli import main

if __name__ == "__main__":
    sys.exit(main())
