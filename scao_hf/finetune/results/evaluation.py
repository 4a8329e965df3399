"""Loss and perplexity of a run's model, or of any model, on held-out rows or on a file."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scao_hf.finetune import model as models
from scao_hf.finetune import preflight, settings
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.data import Rows, as_dataset, prepare_rows
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.failures import answers
from scao_hf.finetune.reader import read_recipe
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.results import weights
from scao_hf.finetune.results.folder import RunFolder

if TYPE_CHECKING:
    import torch

Told = Callable[[str], None]

_WHOLE_FILE = (
    "data.test_split_size=null",
    "data.eval_path=null",
    "data.eval_split=null",
    "data.name=null",
    "data.split=null",
    "data.format=null",
    "data.column_mapping=null",
    "data.loss_on=null",
    "data.max_samples=null",
    "training.eval_strategy=no",
    "training.load_best_model_at_end=null",
)
"""What a run's recipe says of its own data, and another file has nothing to do with."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A model's loss on some rows, in nats per supervised token."""

    model: str
    data: str
    loss: float
    perplexity: float
    rows: int
    tokens: int
    """Supervised tokens."""
    loss_on: str
    seconds: float
    recorded_loss: float | None
    """What the run itself measured on the same rows after training; None for other rows or another model."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def evaluate_run(
    run: RunFolder, data: str | None, overrides: Sequence[str] = (), stage: Told = lambda text: None
) -> Evaluated:
    """Evaluate the trained model of a run on the rows that it held out, or on all rows of other data.

    Args:
        run: with weights.
        data: a file, directory or hub id; None for the rows that the run held out.
        overrides: texts "section.key=value" over the run's recipe, such as `data.column_mapping={...}`.
        stage: told what is going on.

    Raises:
        FinetuneError: data.nothing-held-out if the run held out no rows and `data` is None; all that `finetune` raises
            for data and models.
    """
    assert run.weights.is_dir()
    other = [] if data is None else [*_WHOLE_FILE, f"data.path={json.dumps(data)}"]
    recipe = load_recipe(str(run.resolved), [*other, *overrides])
    if data is None and not recipe.holds_out_rows:
        message = f"the run in {run.path} held out no rows"
        raise FinetuneError("data.nothing-held-out", message, "give the data to evaluate on: --data FILE")
    device = weights.device_for(recipe)
    stored = replace(weights.stored_recipe(run), training=recipe.training)
    with answers(run.path):
        return _evaluated(
            recipe,
            device,
            name=str(run.path),
            tokenizer=weights.load_tokenizer(run),
            load=lambda: weights.load_trained(run, stored, device),
            held_out=data is None,
            recorded=run.report.get("final_eval_loss") if data is None and not overrides else None,
            stage=stage,
        )


def evaluate_model(name: str, data: str, overrides: Sequence[str] = (), stage: Told = lambda text: None) -> Evaluated:
    """Evaluate a model, from a directory, the hub or this package, on all rows of a file or dataset.

    Raises:
        FinetuneError: all that `finetune` raises for recipes, data and models.
    """
    text = f"schema: 1\nmodel:\n  model_name_or_path: {json.dumps(name)}\ndata:\n  path: {json.dumps(data)}\n"
    recipe = read_recipe(text, "eval", overrides)
    device = weights.device_for(recipe)
    reference = models.model_reference(recipe.model)
    config = models.load_config(recipe.model, reference)
    context = models.context_length(config)
    if context is not None and not any("max_length" in override for override in overrides):
        recipe = replace(recipe, data=replace(recipe.data, max_length=min(context, recipe.data.max_length or context)))
    models.check_lengths(config, recipe.data.max_length)
    with answers(Path.cwd()):
        return _evaluated(
            recipe,
            device,
            name=name,
            tokenizer=models.load_tokenizer(recipe.model, reference),
            load=lambda: models.load_model(recipe, reference, config, device),
            held_out=False,
            recorded=None,
            stage=stage,
        )


def _evaluated(
    recipe: Recipe,
    device: torch.device,
    *,
    name: str,
    tokenizer: Any,
    load: Callable[[], Any],
    held_out: bool,
    recorded: float | None,
    stage: Told,
) -> Evaluated:
    from scao_hf.finetune.trainer import GuardedTrainer

    stage("reading the data")
    template = models.chat_template(tokenizer, recipe.training.get("chat_template_path"))
    # The rows that a stream holds out are its first ones; of any other data, all are asked for.
    data = recipe.data if held_out else replace(recipe.data, streaming=False)
    rows = prepare_rows(data, recipe.seed, template)
    chosen = rows.evaluation if held_out else rows.train
    stage("loading the model")
    model = load()
    stage("evaluating")
    with tempfile.TemporaryDirectory(prefix="scao-finetune-") as folder:
        trainer = _trainer(GuardedTrainer, model, tokenizer, recipe, rows, chosen, Path(folder), device)
        began = time.perf_counter()
        result = trainer.held_out_loss()
        return Evaluated(
            model=name,
            data=str(recipe.data.path) + (" (held out)" if held_out else ""),
            loss=result.loss,
            perplexity=result.perplexity,
            rows=len(trainer.eval_dataset),
            tokens=result.tokens,
            loss_on=rows.loss_on,
            seconds=time.perf_counter() - began,
            recorded_loss=recorded,
        )


def _trainer(
    kind: Any,
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    rows: Rows,
    chosen: list[dict[str, Any]],
    folder: Path,
    device: torch.device,
) -> Any:
    """A trainer that never trains: its tokenization and its loss are those of a run."""
    idle = {
        "output_dir": str(folder),
        "optim": "adamw_torch",
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
    }
    data = replace(recipe.data, packing=False, streaming=False)
    recipe = replace(recipe, data=data, training={**recipe.training, **idle})
    trainer = kind(
        model=model,
        args=settings.sft_arguments(recipe, rows.loss_on, models.computes_in_bfloat16(device)),
        # TRL insists on rows to train on.
        train_dataset=as_dataset(chosen[:1]),
        eval_dataset=as_dataset(chosen),
        processing_class=tokenizer,
    )
    trainer.train_dataset = trainer.eval_dataset
    preflight.check(trainer, recipe, model, {"read": len(chosen)})
    return trainer
