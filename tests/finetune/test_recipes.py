"""Recipes: what is packaged, how one is found, overridden and refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.recipes import copy_recipe, describe, load_recipe, recipe_names, recipe_text, resolved_yaml

Problem = tuple[str, str | None, str, str | None]

SMALL = """\
schema: 1
model: {model_name_or_path: some/model}
lora: {r: 8}
data: {path: rows.jsonl, test_split_size: 0.1}
training:
  learning_rate: 2e-4
  warmup_steps: 0.03
scao:
  warmup_steps: auto
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Callable[..., list[Problem]]:
    """Reads a recipe that must be refused, and returns what was wrong: code, place, message, hint."""

    def read(text: str, overrides: Sequence[str] = ()) -> list[Problem]:
        path = tmp_path / "my.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(FinetuneError) as caught:
            load_recipe(str(path), overrides)
        assert caught.value.exit_code == 2
        return [_problem(error, tmp_path) for error in caught.value.problems]

    return read


def _problem(error: FinetuneError, folder: Path) -> Problem:
    place = None if error.location is None else str(error.location).removeprefix(f"{folder}/")
    return error.code, place, error.message, error.hint


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_is_valid_and_described(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.notices == ()
    assert recipe.training["output_dir"] == f"runs/{name}"
    summary = describe(name)
    assert summary.name == name
    assert len(summary.description) > 20
    assert summary.optimizer == "scao"


def test_the_list_of_packaged_recipes_is_the_documented_one() -> None:
    assert recipe_names() == [
        "compare-adamw-scao",
        "cpu-smoke",
        "demo",
        "full-ft-small",
        "lora-sft",
        "qwen2.5-1.5b-lora",
        "qwen2.5-7b-qlora",
        "qwen3-0.6b-lora",
        "text-completion",
        "tiny-llama",
    ]


def test_listing_recipes_loads_neither_torch_nor_transformers() -> None:
    script = (
        "import sys; from scao_hf.finetune.recipes import describe, recipe_names\n"
        "[describe(name) for name in recipe_names()]\n"
        "assert not {'torch', 'transformers', 'peft', 'trl', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_recipe_in_the_folder_recipes_comes_before_a_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "demo.yaml").write_text("description: mine\n", encoding="utf-8")
    assert load_recipe("demo").description == "mine"


def test_a_copied_recipe_is_the_packaged_text_and_is_not_replaced_unasked(tmp_path: Path) -> None:
    copied = copy_recipe("lora-sft", tmp_path)
    assert copied == tmp_path / "lora-sft.yaml"
    assert copied.read_text(encoding="utf-8") == recipe_text("lora-sft")
    with pytest.raises(FinetuneError) as caught:
        copy_recipe("lora-sft", tmp_path)
    assert caught.value.code == "config.file-exists"
    copied.write_text("changed", encoding="utf-8")
    assert copy_recipe("lora-sft", copied, force=True).read_text(encoding="utf-8") == recipe_text("lora-sft")


def test_an_unknown_recipe_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(FinetuneError) as caught:
        load_recipe("lora-stf")
    assert caught.value.message == "no recipe is called `lora-stf`"
    assert caught.value.hint == "did you mean `lora-sft`?"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["chats.jsonl", "./chats.jsonl"])
def test_data_in_the_place_of_a_recipe_are_told_where_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").touch()
    with pytest.raises(FinetuneError) as caught:
        load_recipe(name)
    assert (caught.value.code, caught.value.message) == (
        "config.unknown-recipe",
        f"{name} is a file of data, not a recipe",
    )
    assert caught.value.hint == f"give it as --data: scao-finetune train lora-sft --model MODEL --data {name}"


def test_a_missing_recipe_file_is_refused_with_the_nearest_file(small: Path) -> None:
    with pytest.raises(FinetuneError) as caught:
        load_recipe(str(small.with_name("smal.yaml")))
    assert caught.value.code == "config.missing-file"
    assert caught.value.hint == f"did you mean {small}?"


def test_everything_wrong_with_a_recipe_is_reported_together(problems: Callable[..., list[Problem]]) -> None:
    found = problems(
        """\
model: {model_name_or_path: a/b, dtype: bf16}
lora:
  lora_alpa: 32
  init_lora_weights: loftq
data:
  path: rows.jsonl
  cutoff_len: 12
training:
  learing_rate: 2e-4
  lr_scheduler_type: cosin
  max_length: 12
  num_train_epochs: "3"
  bf16: yes
scao:
  precond_frequency: 10
  epsilon_sparse: 7
modle: 3
"""
    )
    assert found == [
        ("config.unknown-key", "my.yaml:17:1", "unknown key `modle`", "did you mean `model`?"),
        (
            "config.wrong-type",
            "my.yaml:1:34",
            "`model.dtype` must be one of auto, float32, bfloat16, float16, got 'bf16' (text)",
            None,
        ),
        ("config.unknown-key", "my.yaml:3:3", "unknown key `lora.lora_alpa`", "did you mean `lora_alpha`?"),
        (
            "config.wrong-type",
            "my.yaml:4:3",
            "`lora.init_lora_weights` must be one of true, false, gaussian, orthogonal, pissa, pissa_niter_4, "
            "pissa_niter_16, olora, got 'loftq' (text)",
            None,
        ),
        ("config.unknown-key", "my.yaml:7:3", "unknown key `data.cutoff_len`", "did you mean `data.max_length`?"),
        ("config.unknown-key", "my.yaml:9:3", "unknown key `training.learing_rate`", "did you mean `learning_rate`?"),
        ("config.wrong-type", "my.yaml:10:3", found[6][2], "did you mean `cosine`?"),
        (
            "config.unknown-key",
            "my.yaml:11:3",
            "`training.max_length` is not a key of a recipe",
            "write data.max_length",
        ),
        (
            "config.wrong-type",
            "my.yaml:12:3",
            "`training.num_train_epochs` must be a number, got '3' (text)",
            "write it without quotes",
        ),
        ("config.wrong-type", "my.yaml:13:3", found[9][2], "write true"),
        (
            "config.unknown-key",
            "my.yaml:15:3",
            "unknown key `scao.precond_frequency`",
            "did you mean `scao.precond_freq`?",
        ),
    ]
    assert "`training.bf16` must be true or false" in found[9][2]


@pytest.mark.parametrize(
    ("override", "words", "hint"),
    [
        ("scao.epsilon_sparse=7", "`scao.epsilon_sparse`: epsilon_sparse must be in [0, 1), got 7", None),
        ("scao.k_mni=4", "unknown key `scao.k_mni`", "did you mean `k_min`?"),
        ("scao.lr=1", "`scao.lr` is not a key of a recipe", "write training.learning_rate"),
        ("training.optim=adamw_troch", "`training.optim` cannot be 'adamw_troch'", "did you mean `adamw_torch`?"),
        ("training.optim=scoa", "`training.optim` cannot be 'scoa' (text)", "did you mean `scao`?"),
        ("training.optim=SCAO", "`training.optim` cannot be 'SCAO' (text)", "did you mean `scao`?"),
        ("training.optim=adam", "`training.optim` cannot be 'adam' (text)", "did you mean `adamw_torch`?"),
        ("training.optim=muon", "`training.optim` must be one of adamw_torch, ", None),
        ("training.optim_args=rho=1", "`training.optim_args` is not a key of a recipe", "write the section `scao`"),
        ("training.eval_strategy=sometimes", "`training.eval_strategy` must be one of no, steps, epoch", None),
        ("data.format=alpaka", "`data.format` must be one of auto, text", "did you mean `alpaca`?"),
        ("training.learning_rate=fast", "`training.learning_rate` must be a number, got 'fast' (text)", None),
        ("training.max_steps=true", "`training.max_steps` must be an integer, got True (a truth value)", None),
        ("lora.r=0", "section `lora`: r must be at least 1, got 0", None),
        ("data.max_samples=0", "`data.max_samples` must be at least 1, got 0", "write 1 or more"),
        ("training.learning_rate=-1", "`training.learning_rate` must be at least 0, got -1", "write 0 or more"),
        ("training.learning_rate=.inf", "`training.learning_rate` must be finite, got inf", "write 0 or more"),
        ("training.weight_decay=.nan", "`training.weight_decay` must be at least 0, got nan", "write 0 or more"),
        ("training.adam_beta2=1", "`training.adam_beta2` must be in [0, 1), got 1", "write 0.9"),
        ("training.warmup_steps=-3", "`training.warmup_steps` must be at least 0, got -3", "write 0 or more"),
        ("training.warmup_steps=1.5", "must be a fraction below 1 or a number of steps, got 1.5", "write 0.05 or 100"),
        ("max_steps=0", "`training.max_steps` must be at least 1, or -1 to count epochs, got 0", "write 100"),
        ("num_train_epochs=0", "`training.num_train_epochs` must be finite and above 0, got 0", "write 1"),
        ("per_device_train_batch_size=0", "must be at least 1, got 0", "write 1 or more"),
        ("data.test_split_size=1.5", "must be a fraction below 1 or a number of rows, got 1.5", "write 0.05 or 100"),
        ("data.eval_path=other.jsonl", "rows are held out twice", "write data.test_split_size: null"),
        ("quantization={load_in_4bit: true, load_in_8bit: true}", "section `quantization`: ", None),
        ("quantization={bnb_4bit_quant_type: nf4}", "set load_in_4bit or load_in_8bit to true", None),
        ("model.from_scratch=true", "an adapter on random weights is of no use", "write lora: null"),
        ("lora.lora_dropout=1.5", "`lora.lora_dropout` must be from 0 to 1, got 1.5", "write 0.05"),
        (
            "training.fsdp=full_shard",
            "`training.fsdp` shards the matrices, and scao works on whole ones",
            "write training.fsdp: null, or training.optim: adamw_torch",
        ),
        ("dataloader_num_workers=-1", "must be at least 0, got -1", "write 0 or more"),
        ("lora=3", "section `lora` must be a mapping, got 3", "write lora.KEY=VALUE"),
        ("learning_rate", "`learning_rate` is not an override", "write section.key=value"),
        ("training.seed=[1", "the value of `training.seed` is not valid YAML", "quote it"),
        ("seed=-1", "`training.seed` must be from 0 to 4294967295, got -1", "write 42"),
        ("data_seed=4294967296", "`training.data_seed` must be from 0 to 4294967295, got 4294967296", "write 42"),
        ("data.path=''", "`data.path` is empty", "give a name or a path; is a variable of the shell not set?"),
        (
            "output_dir=''",
            "`training.output_dir` is empty",
            "give a name or a path; is a variable of the shell not set?",
        ),
        ("lr=1e-3", "unknown key `lr`", "did you mean `training.learning_rate`?"),
        (
            "warmup_steps=3",
            "`warmup_steps` is ambiguous: training.warmup_steps or scao.warmup_steps",
            "write the section as well",
        ),
    ],
)
def test_a_wrong_override_is_refused_with_a_sentence(
    problems: Callable[..., list[Problem]], override: str, words: str, hint: str | None
) -> None:
    [(code, _, message, found_hint)] = problems(SMALL, [override])
    assert code.startswith("config.")
    assert words in message
    assert found_hint == hint


def test_overrides_are_typed_and_the_last_one_wins(small: Path) -> None:
    overrides = ["learning_rate=1e-3", "training.learning_rate=2e-3", "lora.r=4", "data.column_mapping.prompt=question"]
    recipe = load_recipe(str(small), overrides)
    assert recipe.training["learning_rate"] == 2e-3
    assert recipe.lora == {"r": 4}
    assert recipe.data.column_mapping == {"prompt": "question"}


def test_an_override_of_a_text_key_is_taken_literally(small: Path) -> None:
    assert load_recipe(str(small), ["data.path=123"]).data.path == "123"


def test_null_resets_a_key_to_the_default_and_a_section_to_none(small: Path) -> None:
    recipe = load_recipe(str(small), ["learning_rate=null", "lora=null", "data.max_length=null"])
    assert "learning_rate" not in recipe.training
    assert recipe.lora is None
    assert recipe.data.max_length is None


def test_another_optimizer_leaves_the_section_scao_unread_and_says_so(small: Path) -> None:
    recipe = load_recipe(str(small), ["optim=adamw_torch"])
    assert recipe.scao == {}
    assert recipe.notices == ("training.optim is adamw_torch: the section `scao` is not read",)


def test_options_of_another_optimizer_are_refused_with_the_way_to_drop_them(small: Path) -> None:
    with pytest.raises(FinetuneError) as caught:
        load_recipe(str(small), ["optim=soap", "scao={k_max: 8}"])
    assert caught.value.message == "unknown key `scao.k_max`"
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("the options of soap are adam_warmup_steps, ")
    assert caught.value.hint.endswith("; scao=null leaves all of them out")
    assert load_recipe(str(small), ["optim=soap", "scao={k_max: 8}", "scao=null"]).scao == {}


def test_old_names_are_read_with_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "training: {warmup_ratio: 0.1, evaluation_strategy: no, overwrite_output_dir: true}", encoding="utf-8"
    )
    recipe = load_recipe(str(path))
    assert recipe.training["warmup_steps"] == 0.1
    assert recipe.training["eval_strategy"] == "no"
    assert "overwrite_output_dir" not in recipe.training
    assert [notice.split(" is ")[0] for notice in recipe.notices] == [
        "training.warmup_ratio",
        "training.evaluation_strategy",
        "training.overwrite_output_dir",
    ]


def test_two_names_of_one_setting_are_refused(problems: Callable[..., list[Problem]]) -> None:
    [(code, place, message, _)] = problems("training:\n  warmup_steps: 3\n  warmup_ratio: 0.1\n")
    assert (code, place) == ("config.duplicate-key", "my.yaml:3:3")
    assert message == "`training.warmup_ratio` and `training.warmup_steps` are two names of one setting"


def test_a_recipe_of_a_newer_schema_is_refused(problems: Callable[..., list[Problem]]) -> None:
    [(code, place, message, _)] = problems("schema: 2\n")
    assert (code, place) == ("config.schema", "my.yaml:1:1")
    assert message == "`schema` is 2, and this version of scao-hf reads schema 1"


def test_evaluation_without_held_out_rows_is_refused(problems: Callable[..., list[Problem]]) -> None:
    [(code, place, message, _)] = problems("data: {path: x.jsonl}\ntraining:\n  eval_strategy: steps\n")
    assert (code, place) == ("config.invalid-value", "my.yaml:3:3")
    assert message == "`training.eval_strategy` asks for rows that nothing holds out"


def test_the_resolved_recipe_reads_back_to_the_same_sections(small: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(small), ["training.adam_beta1=0.8"])
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(recipe), encoding="utf-8")
    reread = load_recipe(str(again))
    for section in ("model", "quantization", "lora", "data", "training", "scao"):
        assert getattr(reread, section) == getattr(recipe, section), section
