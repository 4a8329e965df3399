"""What a preview says is what a run trains on: the same tokens, the same masks, the same cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trl import SFTConfig

from scao_hf.finetune.evaluate import IGNORED
from scao_hf.finetune.observer import Silence
from scao_hf.finetune.preview import Preview, preview
from scao_hf.finetune.recipes import load_recipe
from scao_hf.finetune.settings import output_directory
from scao_hf.finetune.stages import Stages
from scao_hf.finetune.token_counts import Bin, count_tokens, histogram
from scao_hf.finetune.tokenized import TokenizedRow

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is it?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]
ROWS = {
    "text": {"text": "the cat sat on the mat"},
    "prompt_completion": {"prompt": "Where? ", "completion": "On the mat."},
    "alpaca": {"instruction": "Say where.", "input": "cat", "output": "On the mat."},
    "messages": {"messages": CHAT},
    "sharegpt": {"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}]},
}


CUTS_STARTS = any(field.name == "truncation_mode" for field in dataclasses.fields(SFTConfig))
"""Whether this release of TRL has a choice of which end of a row it cuts."""


def previewed(recipe: Path, *overrides: str, **options: Any) -> Preview:
    return preview(load_recipe(str(recipe), ["data.test_split_size=null", *overrides]), **options)


def trained_on(recipe: Path, *overrides: str) -> list[list[tuple[int, bool]]]:
    """Token ids of every training row with whether the loss counts them, from the batches of a run's own trainer."""
    read = load_recipe(str(recipe), ["data.test_split_size=null", *overrides])
    run = Stages(read, Silence(), output_directory(read))
    run.load_inputs()
    run.load_weights()
    run.build_trainer()
    rows: Any = run.trainer.train_dataset
    batch = run.trainer.data_collator([dict(row) for row in rows])
    return [
        [(int(token), int(label) != IGNORED) for token, label, seen in zip(*row, strict=True) if seen]
        for row in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)
    ]


@pytest.mark.parametrize("loss_on", ["auto", "all"])
@pytest.mark.parametrize("row_format", ROWS)
def test_a_preview_shows_the_tokens_and_the_mask_of_the_trainer(
    recipe_file: Path, rows_file: Callable[..., Path], row_format: str, loss_on: str
) -> None:
    data = [f"data.path={rows_file([ROWS[row_format]] * 2, 'p.jsonl')}", f"data.loss_on={loss_on}", "max_length=120"]
    found = previewed(recipe_file, *data)
    # The first token of a row is never predicted, so that its label is of no account.
    shown = [
        [(token.id, token.fate == "trained") for token in sample.tokens if token.fate != "cut"]
        for sample in found.samples
    ]
    expected = [[(row[0][0], False), *row[1:]] for row in trained_on(recipe_file, *data)]
    assert (found.format, len(shown)) == (row_format, 2)
    assert shown == expected
    assert found.counts.supervised_tokens == sum(trained for row in expected for _, trained in row)


def test_the_spans_of_a_sample_are_its_text_parted_where_the_loss_begins_and_ends(
    recipe_file: Path, rows_file: Callable[..., Path]
) -> None:
    [sample] = previewed(recipe_file, f"data.path={rows_file([{'messages': CHAT[1:3]}])}").samples
    assert [(span.fate, span.text) for span in sample.spans] == [
        ("read", "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\n"),
        ("trained", "Yes.<|im_end|>"),
        ("read", "\n"),
    ]
    assert sample.place.endswith("rows.jsonl:1")


@pytest.mark.parametrize(
    ("overrides", "cut"),
    [
        ([], "fgh<|im_end|>"),
        pytest.param(
            ["training.truncation_mode=keep_end"],
            "abcd",
            marks=pytest.mark.skipif(not CUTS_STARTS, reason="TRL cuts ends alone"),
        ),
    ],
)
def test_what_the_cut_takes_is_shown_apart(
    recipe_file: Path, rows_file: Callable[..., Path], overrides: list[str], cut: str
) -> None:
    found = previewed(recipe_file, f"data.path={rows_file([{'text': 'abcdefgh'}])}", "max_length=5", *overrides)
    [sample] = found.samples
    assert [span.text for span in sample.spans if span.fate == "cut"] == [cut]
    counts = found.counts
    assert (counts.truncated_rows, counts.cut_tokens, counts.kept_tokens, counts.supervised_tokens) == (1, 4, 5, 4)


def test_a_cut_that_takes_every_end_of_text_is_noticed(recipe_file: Path, rows_file: Callable[..., Path]) -> None:
    data = f"data.path={rows_file([{'text': 'abcdefgh'}] * 3)}"
    assert previewed(recipe_file, data).notices == ()
    cut = previewed(recipe_file, data, "max_length=5")
    assert cut.counts.stopping_rows == 0
    assert [notice.partition(":")[0] for notice in cut.notices] == [
        "the loss never counts a token that ends the text (<|im_end|>), so the model would not learn to stop",
        "100% of the rows are longer than data.max_length=5",
    ]


def test_a_small_share_of_trained_tokens_is_noticed(recipe_file: Path, rows_file: Callable[..., Path]) -> None:
    rows = [{"prompt": "x" * 120, "completion": "y"}]
    found = previewed(recipe_file, f"data.path={rows_file(rows)}", "max_length=128")
    assert found.counts.supervised_share == 2 / 122
    assert found.notices[0].startswith("the loss counts 1.6% of the tokens")
    assert found.problem is None


def test_rows_that_a_run_would_refuse_are_shown_with_the_problem(
    recipe_file: Path, rows_file: Callable[..., Path]
) -> None:
    rows = [{"prompt": "word " * 20, "completion": "answer"}] * 2
    found = previewed(recipe_file, f"data.path={rows_file(rows)}", "max_length=64")
    assert found.problem is not None
    assert (found.problem.code, found.problem.exit_code) == ("data.nothing-left", 3)
    assert "read 2 → parsed 2 → formatted 2 → after max_length 0" in found.problem.message
    assert (len(found.samples), found.counts.dropped_rows) == (2, 2)


def test_token_ids_beyond_the_embedding_are_a_problem(
    recipe_file: Path, tiny_model: Path, rows_file: Callable[..., Path], tmp_path: Path
) -> None:
    import json
    import shutil

    model = Path(shutil.copytree(tiny_model, tmp_path / "narrow"))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 200}), encoding="utf-8")
    (model / "model.safetensors").unlink()
    found = previewed(recipe_file, f"model.model_name_or_path={model}")
    assert found.problem is not None
    assert (found.problem.code, found.problem.exit_code) == ("model.vocabulary", 4)


def test_no_weights_are_needed(
    recipe_file: Path, tiny_model: Path, chats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    import transformers

    def load(*_args: object, **_options: object) -> None:
        raise AssertionError("a model was loaded")

    model = Path(shutil.copytree(tiny_model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", load)
    found = previewed(recipe_file, f"data.path={chats}", f"model.model_name_or_path={model}", rows=5, samples=1)
    assert (found.counts.rows, len(found.samples), found.training_rows) == (5, 1, 24)
    assert not (tmp_path / "run").exists()


def test_without_a_model_rows_are_shown_in_bytes_and_uncut(rows_file: Callable[..., Path]) -> None:
    overrides = [f"data.path={rows_file([{'text': 'x' * 2000}] * 2)}", "data.test_split_size=null", "eval_strategy=no"]
    found = preview(load_recipe("lora-sft", overrides))
    assert found.notices[0].startswith("no model is named: tokens are bytes")
    assert (found.counts.longest, found.counts.truncated_rows, found.problem) == (2001, 0, None)


def test_long_rows_are_counted_as_packing_will_treat_them(recipe_file: Path, rows_file: Callable[..., Path]) -> None:
    packed = [f"data.path={rows_file([{'text': 'x' * 100}] * 2)}", "data.packing=true"]
    assert previewed(recipe_file, *packed).counts.truncated_rows == 2
    assert previewed(recipe_file, *packed, "packing_strategy=wrapped").counts.truncated_rows == 0


def test_tokens_are_counted_by_hand() -> None:
    rows = [
        TokenizedRow([1, 2, 3, 9], [True, False, True, True]),
        TokenizedRow([1, 2, 3, 4, 5, 9], [False, False, False, False, True, True]),
        TokenizedRow([1, 9], [False, True]),
    ]
    counts = count_tokens(rows, {9}, 4)
    assert (counts.rows, counts.tokens, counts.longest, counts.percentiles) == (3, 12, 6, {50: 4, 95: 6, 99: 6})
    assert (counts.truncated_rows, counts.cut_tokens, counts.dropped_rows) == (1, 2, 1)
    assert (counts.kept_tokens, counts.supervised_tokens, counts.stopping_rows) == (6, 3, 2)
    assert counts.supervised_share == 0.5
    assert count_tokens(rows, {9}, 4, from_end=True).dropped_rows == 0


def test_a_histogram_holds_every_row_once_between_round_ends() -> None:
    assert histogram([7]) == (Bin(7, 8, 1),)
    bins = histogram(sorted([3, 5, 119, 120, 121, 950]))
    assert (bins[0].low, bins[-1].high, sum(one.rows for one in bins)) == (0, 960, 6)
    assert {one.high - one.low for one in bins} == {80}
    assert bins[1] == Bin(80, 160, 3)
