"""Entry point of `scao-finetune` and of `python -m scao_hf`; it can be imported without the `cli` extra."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from scao_hf.finetune.errors import FinetuneError

PARTS_OF_THE_EXTRA = ("typer", "rich", "yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` leaves the program's name out, as in `sys.argv[1:]`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        from .dispatch import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in PARTS_OF_THE_EXTRA:
            raise
        return explain_missing_extra(package, as_json="--json" in arguments)
    return run(arguments)


def explain_missing_extra(package: str, *, as_json: bool) -> int:
    failure = FinetuneError(
        "extra.missing",
        f"the command line needs {package}, which is not installed",
        hint='pip install "scao-hf[cli]"',
    )
    print(f"error[{failure.code}]: {failure.message}\n   = help: {failure.hint}", file=sys.stderr)
    if as_json:
        print(json.dumps(failure.to_dict(), indent=2))
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main())
