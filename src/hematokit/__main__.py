"""``python -m hematokit``, which launchers of several processes need: ``torchrun -m hematokit train ...``."""

from __future__ import annotations

import sys

from hematokit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
