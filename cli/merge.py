"""`scao-finetune merge`."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from .console import say, tell
from .documents import print_document
from .options import AsJson, Debug, Quiet
from .working import RunName, working


class Precision(enum.StrEnum):
    """Dtypes that weights can be merged in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def merge(
    context: typer.Context,
    run: RunName,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the merged model.", show_default=False)],
    dtype: Annotated[
        Precision | None, typer.Option("--dtype", help="Of the merged weights; by default that of the base.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Merge the adapter of a run into its base: a model that needs neither PEFT nor the base.

    The folder is loaded again and its logits are compared with those of base and adapter before it is called good; a
    model that differs by more than rounding does is not kept.

    Example:

      scao-finetune merge runs/lora-sft --out merged
    """
    from scao_hf.finetune.results.folder import open_run

    folder = open_run(run)
    with working(context.obj, quiet=quiet) as progress:
        from scao_hf.finetune.failures import answers
        from scao_hf.finetune.results.merging import merge as merge_adapter

        with answers(out):
            merged = merge_adapter(folder, out, None if dtype is None else dtype.value, progress.stage)
    if as_json:
        print_document({"status": "ok", **merged.to_dict()})
        return
    say(str(merged.output_dir))
    tell(
        f"verified on {merged.tokens} tokens: logits within {merged.error:.1g} of their spread "
        f"({merged.tolerance:g} is allowed in {merged.dtype}), the same likeliest token at {merged.agreement:.1%}"
    )
