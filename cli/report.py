"""`scao-finetune report`."""

from __future__ import annotations

from .documents import print_document
from .options import AsJson, Debug
from .working import RunName


def report(run: RunName, as_json: AsJson = False, debug: Debug = False) -> None:
    """Draw a run: one page without a network, and its figures as PNG and SVG.

    Loss by step and by seconds, learning rate and gradient norm over the optimizer's phases, the rank of every layer,
    memory, samples, settings, and how to load the result. `train` draws it by itself when a run ends; any run can be
    drawn that has begun.

    Example:

      scao-finetune report runs/lora-sft
    """
    from scao_hf.finetune.results.folder import open_run
    from scao_hf.finetune.results.report import write_report

    from .console import say, tell
    from .recipe_commands import shown

    page, *figures = write_report(open_run(run))
    if as_json:
        print_document({"status": "ok", "report": page, "figures": figures})
        return
    say(shown(page.absolute()))
    names = sorted({figure.stem for figure in figures})
    tell(f"figures beside it, as .svg and .png: {', '.join(names) or 'none, as nothing was measured yet'}")
