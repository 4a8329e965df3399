"""What can be checked once the rows are tokenized and before the first step."""

from __future__ import annotations

from typing import Any

import pyarrow
import pyarrow.compute

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.evaluate import IGNORED
from scao_hf.finetune.model import check_token_ids, context_length

_MASKS = ("completion_mask", "assistant_masks")


def check(trainer: Any, recipe: Recipe, model: Any, funnel: dict[str, int]) -> None:
    """Refuse rows from which nothing could be learned, or at which the model would fail; extends the funnel.

    Raises:
        FinetuneError: data.nothing-left, data.all-masked, model.vocabulary, model.context.
    """
    if not recipe.data.packing:
        trainer.train_dataset = learnable_rows(trainer.train_dataset)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = learnable_rows(trainer.eval_dataset)
    rows = {"training": trainer.train_dataset, "held-out": trainer.eval_dataset}
    funnel["packed" if recipe.data.packing else "tokenized"] = len(trainer.train_dataset)
    for name, dataset in rows.items():
        if dataset is not None:
            _check_rows(dataset, name, recipe, model, funnel)


def _check_rows(dataset: Any, name: str, recipe: Recipe, model: Any, funnel: dict[str, int]) -> None:
    if len(dataset) == 0:
        stages = " → ".join(f"{stage} {count}" for stage, count in funnel.items())
        message = f"no {name} row is left ({stages}): cut to {recipe.data.max_length} tokens, none has a reply to learn"
        raise FinetuneError("data.nothing-left", message, "raise data.max_length, or data.loss_on=all")
    table = dataset.with_format("arrow")[:]
    if supervised_tokens(table) == 0:
        message = f"all labels of the {name} rows are masked: there is nothing to learn"
        raise FinetuneError("data.all-masked", message, "data.loss_on=all, or check the chat template and the replies")
    lengths = pyarrow.compute.list_value_length(table.column("input_ids"))
    longest, context = pyarrow.compute.max(lengths).as_py(), context_length(model.config)
    if context is not None and longest > context:
        message = f"a {name} row has {longest} tokens, and the model's context is {context}"
        raise FinetuneError("model.context", message, f"data.max_length={context}")
    largest = pyarrow.compute.max(pyarrow.compute.list_flatten(table.column("input_ids"))).as_py()
    check_token_ids(largest, model)


def notices(trainer: Any, recipe: Recipe, model: Any) -> list[str]:
    """What is odd about the training rows, and yet can be trained on."""
    table = trainer.train_dataset.with_format("arrow")[:]
    ends = end_tokens(trainer.processing_class, model)
    if not ends or supervises(table, ends):
        return []
    words = " or ".join(trainer.processing_class.convert_ids_to_tokens(ends))
    told = f"the loss counts no end-of-text token ({words}), so that the model will not learn to stop"
    cut = "" if recipe.data.max_length is None else f" rows cut at data.max_length={recipe.data.max_length}, or"
    return [f"{told}; look for{cut} a chat template without it"]


def end_tokens(tokenizer: Any, model: Any) -> list[int]:
    """The tokens at which generation stops, the tokenizer's and the model's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return sorted({token for token in ids if token is not None})


def supervises(table: pyarrow.Table, tokens: list[int]) -> bool:
    """Whether the loss counts one of the tokens in any row."""
    compute = pyarrow.compute
    ids = compute.list_flatten(table.column("input_ids"))
    found = compute.is_in(ids, value_set=pyarrow.array(tokens, ids.type))
    counted = _counted(table)
    return bool(compute.any(found if counted is None else compute.and_(found, counted)).as_py())


def _counted(table: pyarrow.Table) -> Any:
    """Whether the loss counts each token of all rows; None if it counts all of them."""
    compute = pyarrow.compute
    if "labels" in table.column_names:
        return compute.not_equal(compute.list_flatten(table.column("labels")), IGNORED)
    masks = [compute.list_flatten(table.column(name)) for name in _MASKS if name in table.column_names]
    if not masks:
        return None
    product = masks[0] if len(masks) == 1 else compute.multiply(*masks)
    return compute.greater(product, 0)


def learnable_rows(dataset: Any) -> Any:
    """The rows with a supervised token left after the cut; some releases of TRL keep the others."""
    columns = [name for name in ("labels", *_MASKS) if name in dataset.column_names]
    if not columns:
        return dataset
    return dataset.filter(lambda *values: _has_supervised_token(columns, values), input_columns=columns)


def _has_supervised_token(columns: list[str], values: tuple[list[int], ...]) -> bool:
    if columns[0] == "labels":
        return any(label != IGNORED for label in values[0])
    return any(all(bits) for bits in zip(*values, strict=True))


def supervised_tokens(table: pyarrow.Table) -> int:
    """Tokens that the loss counts, whether TRL has made labels of its masks already or will in the collator."""
    counted = _counted(table)
    of_rows = pyarrow.compute.list_value_length(table.column("input_ids")) if counted is None else counted
    return int(pyarrow.compute.sum(of_rows).as_py() or 0)
