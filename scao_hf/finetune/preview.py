"""What a run would train on: rows as text and tokens with those that the loss counts; no weights are loaded."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scao_hf.finetune import embedded
from scao_hf.finetune.config import Recipe
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.observer import Observer, Silence
from scao_hf.finetune.token_counts import TokenCounts, count_tokens
from scao_hf.finetune.tokenized import RowTokenizer, TokenizedRow

SAMPLES = 3
ROWS = 1000

_OFTEN_TRUNCATED = 0.1


@dataclass(frozen=True)
class Span:
    """Successive tokens of a row that share a fate, as text."""

    text: str
    fate: str
    """"trained": the loss counts them; "read": the model only reads them; "cut": beyond `data.max_length`."""
    tokens: int


@dataclass(frozen=True)
class Token:
    """One token of a row."""

    id: int
    text: str
    fate: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row as it would be trained on."""

    place: str
    """Where it was read."""
    spans: tuple[Span, ...]
    tokens: tuple[Token, ...]


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What `preview` found."""

    recipe: str
    tokenizer: str
    dataset: str
    columns: tuple[str, ...]
    format: str
    detected: bool
    """Whether the format was told from the columns, not by `data.format`."""
    loss_on: str
    funnel: dict[str, int]
    """Rows left after each stage of reading; empty for a stream."""
    training_rows: int | None
    """None for a stream."""
    eval_rows: int
    packing: str | None
    """`training.packing_strategy`; None without packing."""
    counts: TokenCounts
    """Over `counts.rows` of the training rows."""
    samples: tuple[Sample, ...]
    notices: tuple[str, ...]
    """What should be known and need not be answered."""
    problem: FinetuneError | None
    """Why `train` would refuse these rows; None if it would not."""

    def to_dict(self) -> dict[str, Any]:
        """The preview as plain values, for JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        shares = {"usable_rows": self.counts.usable_rows, "supervised_share": self.counts.supervised_share}
        return values | {
            "counts": dataclasses.asdict(self.counts) | shares,
            "samples": [dataclasses.asdict(sample) for sample in self.samples],
            "problem": None if self.problem is None else self.problem.to_dict(),
        }


def preview(
    recipe: Recipe, observer: Observer | None = None, *, samples: int = SAMPLES, rows: int | None = ROWS
) -> Preview:
    """Read and tokenize rows as a run of the recipe would, with its tokenizer alone.

    A recipe that names no model is shown in the bytes of the model inside this package, uncut.

    Args:
        recipe: from `load_recipe`; names the data.
        observer: told of every stage; silent by default.
        samples: rows to show, from the start of the training rows.
        rows: training rows to count, drawn at random (of a stream: the first); None for all.

    Raises:
        FinetuneError: kinds "data", "model" and "config", for what can be seen before rows are tokenized. What is wrong
            with the tokens is the preview's `problem`.
    """
    from scao_hf.finetune import settings
    from scao_hf.finetune.failures import answers
    from scao_hf.finetune.inputs import load_inputs
    from scao_hf.finetune.quiet import quiet

    observer = Silence() if observer is None else observer
    recipe, notices = _with_model(recipe)
    settings.require_complete(recipe)
    heard = _Heard(observer)
    with quiet(), answers(settings.output_directory(recipe)):
        inputs = load_inputs(recipe, recipe.seed, heard)
        return _Previewing(recipe, inputs, observer, [*notices, *recipe.notices, *heard.notices]).preview(samples, rows)


def _with_model(recipe: Recipe) -> tuple[Recipe, list[str]]:
    if recipe.model.model_name_or_path is not None:
        return recipe, []
    model = replace(recipe.model, model_name_or_path=embedded.MODEL_NAME)
    data = replace(recipe.data, max_length=None, packing=False)
    notice = f"no model is named: tokens are bytes, those of {embedded.MODEL_NAME}, and nothing is cut; give -m MODEL"
    return replace(recipe, model=model, data=data), [notice]


class _Heard(Observer):
    """Passes stages on and keeps notices, which belong to the result."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self.notices: list[str] = []

    def stage(self, text: str) -> None:
        self.observer.stage(text)

    def notice(self, text: str) -> None:
        self.notices.append(text)


class _Previewing:
    """From a run's inputs to its preview."""

    def __init__(self, recipe: Recipe, inputs: Any, observer: Observer, notices: list[str]) -> None:
        from scao_hf.finetune.templates import with_template

        self.recipe = recipe
        self.inputs = inputs
        self.observer = observer
        self.notices = notices
        self.tokenizer = with_template(inputs.tokenizer, recipe.training.get("chat_template_path"))
        self.tokenize = RowTokenizer(self.tokenizer, inputs.args)

    def preview(self, samples: int, rows: int | None) -> Preview:
        recipe, read = self.recipe, self.inputs.rows
        self.observer.stage("tokenizing")
        shown = list(zip(self.tokenize(read.train[:samples]), read.places, strict=False)) if samples else []
        args = self.inputs.args
        whole = args.packing and args.packing_strategy != "bfd"  # What is too long goes on in the next packed row.
        self.max_length = None if whole else args.max_length
        counts = count_tokens(
            self.tokenize(self._counted(rows)), self._stops(), self.max_length, from_end=self._from_end()
        )
        return Preview(
            recipe=recipe.name,
            tokenizer=str(recipe.model.model_name_or_path),
            dataset=str(recipe.data.path),
            columns=read.columns,
            format=read.format,
            detected=recipe.data.format == "auto",
            loss_on=read.loss_on,
            funnel=dict(read.funnel),
            training_rows=None if read.stream is not None else len(read.train),
            eval_rows=len(read.evaluation),
            packing=args.packing_strategy if args.packing else None,
            counts=counts,
            samples=tuple(self._sample(row, place) for row, place in shown),
            notices=(*self.notices, *self._warnings(counts)),
            problem=self._problem(counts),
        )

    def _counted(self, rows: int | None) -> list[dict[str, Any]]:
        read = self.inputs.rows
        if read.stream is not None:
            return list(itertools.islice(read.stream, rows or ROWS))
        if rows is None or rows >= len(read.train):
            return list(read.train)
        return random.Random(self.recipe.seed).sample(read.train, rows)

    def _from_end(self) -> bool:
        return getattr(self.inputs.args, "truncation_mode", None) == "keep_end"

    def _stops(self) -> set[int]:
        """Ids that end a text for the tokenizer, and those that end it for the model, where these are more."""
        known = self.inputs.config.get_text_config().eos_token_id
        ids = known if isinstance(known, list) else [known]
        return {token for token in (*ids, self.tokenizer.eos_token_id) if token is not None}

    def _warnings(self, counts: TokenCounts) -> list[str]:
        from scao_hf.finetune.preflight import few_supervised

        warnings = few_supervised(counts.supervised_share) if counts.supervised_tokens else []
        if counts.usable_rows and counts.stopping_rows == 0:
            end = self.tokenizer.eos_token
            told = f"the loss never counts a token that ends the text ({end}), so the model would not learn to stop"
            warnings.append(f"{told}: check the chat template, or raise data.max_length")
        if counts.truncated_rows > _OFTEN_TRUNCATED * counts.rows:
            share = counts.truncated_rows / counts.rows
            told = f"{share:.0%} of the rows are longer than data.max_length={counts.max_length}"
            warnings.append(f"{told}: at {counts.longest} none would be cut")
        return warnings

    def _problem(self, counts: TokenCounts) -> FinetuneError | None:
        from scao_hf.finetune.preflight import all_masked, nothing_left

        vocabulary = self.inputs.config.get_text_config().vocab_size
        if counts.largest_id >= max(vocabulary, len(self.tokenizer.vocab) if self._extends() else 0):
            message = (
                f"the tokenizer makes token id {counts.largest_id}, and the model's embedding has {vocabulary} rows"
            )
            return FinetuneError("model.vocabulary", message, "use the tokenizer that belongs to the model")
        if counts.usable_rows:
            return None
        if counts.truncated_rows == 0:
            return all_masked("training")
        return nothing_left("training", self.inputs.rows.funnel | {"after max_length": 0}, counts.max_length)

    def _extends(self) -> bool:
        """Whether the trainer will enlarge the embedding for the tokens of another model's chat template."""
        return self.recipe.training.get("chat_template_path") is not None

    # Samples

    def _sample(self, row: TokenizedRow, place: str) -> Sample:
        fates = self._fates(row)
        edges = [0, *(i for i in range(1, len(fates)) if fates[i] != fates[i - 1]), len(fates)]
        spans = [
            Span(self._text(row.ids, low, high), fates[low], high - low) for low, high in itertools.pairwise(edges)
        ]
        tokens = [
            Token(token, self._text(row.ids, index, index + 1), fate)
            for index, (token, fate) in enumerate(zip(row.ids, fates, strict=True))
        ]
        return Sample(place=place, spans=tuple(spans), tokens=tuple(tokens))

    def _fates(self, row: TokenizedRow) -> list[str]:
        fates = ["trained" if index and trained else "read" for index, trained in enumerate(row.trained)]
        excess = 0 if self.max_length is None else max(0, len(row.ids) - self.max_length)
        if not excess:
            return fates
        if self._from_end():
            return ["cut"] * excess + fates[excess:]
        return fates[:-excess] + ["cut"] * excess

    def _text(self, ids: Sequence[int], low: int, high: int) -> str:
        """The tokens from `low` to `high` as text; a decoder leaves a blank out at the start of what it is given."""
        start = max(0, low - 1)
        before, whole = self._decoded(ids[start:low]), self._decoded(ids[start:high])
        return whole.removeprefix(before) if whole.startswith(before) else self._decoded(ids[low:high])

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
