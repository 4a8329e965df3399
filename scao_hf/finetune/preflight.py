"""What can be checked once the rows are tokenized and before the first step."""

from __future__ import annotations

import itertools
from typing import Any

import pyarrow
import pyarrow.compute

from scao_hf.finetune.config import Recipe
from scao_hf.finetune.data import shown_funnel
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.evaluate import IGNORED
from scao_hf.finetune.isolation import check_isolation
from scao_hf.finetune.model import check_token_ids, context_length
from scao_hf.finetune.units import count

LEAST_SHARE = 0.02
"""Of all tokens, those that the loss counts; a smaller share is worth a word."""

SLOW_ON_CPU = 50_000_000
"""Parameters from which on a step takes seconds."""

_MASKS = ("completion_mask", "assistant_masks")
_FIRST_OF_A_STREAM = 64


def check(trainer: Any, recipe: Recipe, model: Any, funnel: dict[str, int]) -> list[str]:
    """Refuse rows from which nothing could be learned, or at which the model would fail; extends the funnel.

    Returns:
        What should be known and need not be answered, a sentence each.

    Raises:
        FinetuneError: data.nothing-left, data.all-masked, data.packing, model.vocabulary, model.context.
    """
    data = recipe.data
    if data.packing:
        check_isolation(trainer)
    else:
        trainer.train_dataset = learnable_rows(trainer.train_dataset)
    if trainer.eval_dataset is not None:
        trainer.eval_dataset = learnable_rows(trainer.eval_dataset)
    train = _known_rows(trainer.train_dataset)
    if train is trainer.train_dataset:
        funnel["packed" if data.packing else "tokenized" if data.max_length is None else "after max_length"] = len(
            train
        )
    rows = {"training": train, "held-out": trainer.eval_dataset}
    shares = [_check_rows(part, name, recipe, model, funnel) for name, part in rows.items() if part is not None]
    return few_supervised(shares[0])


def _known_rows(dataset: Any) -> Any:
    """All rows; of a stream, the first."""
    from datasets import Dataset, IterableDataset

    if not isinstance(dataset, IterableDataset):
        return dataset
    return Dataset.from_list(list(itertools.islice(dataset, _FIRST_OF_A_STREAM)))


def longest_row(dataset: Any) -> int:
    """Tokens of the longest tokenized row; of a stream, of the longest of the first."""
    lengths = pyarrow.compute.list_value_length(_known_rows(dataset).with_format("arrow")[:].column("input_ids"))
    return int(pyarrow.compute.max(lengths).as_py())


def _check_rows(dataset: Any, name: str, recipe: Recipe, model: Any, funnel: dict[str, int]) -> float:
    """The share of the tokens that the loss counts, if nothing is wrong with the rows."""
    if len(dataset) == 0:
        raise nothing_left(name, funnel, recipe.data.max_length)
    table = dataset.with_format("arrow")[:]
    lengths = pyarrow.compute.list_value_length(table.column("input_ids"))
    supervised, tokens = supervised_tokens(table), pyarrow.compute.sum(lengths).as_py()
    if supervised == 0:
        raise all_masked(name)
    longest, context = pyarrow.compute.max(lengths).as_py(), context_length(model.config)
    if context is not None and longest > context:
        message = f"a {name} row has {longest} tokens, and the model's context is {context}"
        raise FinetuneError("model.context", message, f"data.max_length={context}")
    largest = pyarrow.compute.max(pyarrow.compute.list_flatten(table.column("input_ids"))).as_py()
    check_token_ids(largest, model)
    return supervised / tokens


def nothing_left(name: str, funnel: dict[str, int], max_length: int | None) -> FinetuneError:
    """That every row is fully masked once it is cut; `name` is "training" or "held-out"."""
    stages = f" ({shown_funnel(funnel)})" if funnel else ""
    message = f"no {name} row is left{stages}: cut to data.max_length={max_length}, none has a token to learn"
    return FinetuneError("data.nothing-left", message, "raise data.max_length, or data.loss_on=all")


def all_masked(name: str) -> FinetuneError:
    """That no token of any row counts."""
    message = f"all labels of the {name} rows are masked: there is nothing to learn"
    hint = "data.loss_on=all, or check the chat template and the replies; `scao-finetune preview` shows them"
    return FinetuneError("data.all-masked", message, hint)


def few_supervised(share: float) -> list[str]:
    """A sentence for a share of supervised tokens that is hardly meant; none for any other."""
    if share >= LEAST_SHARE:
        return []
    return [f"the loss counts {share:.1%} of the tokens: `scao-finetune preview` shows which, data.loss_on changes it"]


def notices(trainer: Any, recipe: Recipe, model: Any) -> list[str]:
    """What is odd about the model, the adapter or the training rows, and yet can be trained on."""
    return [*_slow(trainer.args, model), *_unmatched(recipe, model), *_endless(trainer, recipe, model)]


def _slow(args: Any, model: Any) -> list[str]:
    """That a model of some size trains on a CPU, where nobody asked for that."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if args.device.type != "cpu" or args.use_cpu or parameters < SLOW_ON_CPU:
        return []
    told = f"no GPU was found, and {count(parameters)} parameters train on the CPU"
    return [f"{told}: `scao-finetune plan --probe` measures how long that will take"]


def _unmatched(recipe: Recipe, model: Any) -> list[str]:
    """That the adapter names a layer which the model does not have; PEFT only minds where it finds none of them."""
    wanted = (recipe.lora or {}).get("target_modules")
    if not isinstance(wanted, list):
        return []
    paths = [f".{path}" for path, _ in model.named_modules()]
    missing = [name for name in wanted if not any(path.endswith(f".{name}") for path in paths)]
    if not missing:
        return []
    return [f"lora.target_modules names {', '.join(missing)}, and the model has no such layer"]


def _endless(trainer: Any, recipe: Recipe, model: Any) -> list[str]:
    """That the loss counts no token at which a reply ends."""
    table = _known_rows(trainer.train_dataset).with_format("arrow")[:]
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
    names = dataset.column_names or list(next(iter(dataset)))  # A stream knows them once it is read.
    columns = [name for name in ("labels", *_MASKS) if name in names]
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
