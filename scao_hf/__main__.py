"""`python -m scao_hf` is `scao-finetune`."""

from __future__ import annotations

import sys

from scao_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
