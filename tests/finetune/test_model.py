"""Models and tokenizers: what loads, and one sentence for what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scao_hf.finetune import model as models
from scao_hf.finetune.config import ModelSection, Recipe
from scao_hf.finetune.errors import FinetuneError

CPU = torch.device("cpu")


def section(path: Path | str, **options: object) -> ModelSection:
    return ModelSection(model_name_or_path=str(path), **options)  # type: ignore[arg-type]


def load(chosen: ModelSection) -> None:
    """Load everything that belongs to a model, as a run does."""
    reference = models.model_reference(chosen)
    config = models.load_config(chosen, reference)
    models.load_tokenizer(chosen, reference)
    models.load_model(Recipe(name="x", source="x", model=chosen), reference, config, CPU)


def refusal(path: Path | str, **options: object) -> FinetuneError:
    """The error of loading everything that belongs to a model."""
    with pytest.raises(FinetuneError) as caught:
        load(section(path, **options))
    assert caught.value.exit_code == 4
    return caught.value


@pytest.fixture
def broken(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "broken"))


def test_tiny_llama_is_the_packaged_model() -> None:
    from scao_hf.finetune.embedded import model_directory

    assert models.model_reference(section("tiny-llama")) == str(model_directory())
    assert models.model_reference(section("embedded:tiny-llama")) == str(model_directory())


def test_a_missing_directory_is_refused_with_the_nearest_one(tiny_model: Path) -> None:
    error = refusal(tiny_model.with_name("tiny-ramdom"))
    assert error.code == "model.not-found"
    assert error.message == f"no such directory: {tiny_model.with_name('tiny-ramdom')}"
    assert error.hint == f"did you mean {tiny_model}?"


def test_a_directory_without_config_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    error = refusal(tmp_path)
    assert (error.code, error.hint) == ("model.no-config", "it holds weights.bin")


def test_an_adapter_is_refused_with_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "the/base"}))
    error = refusal(tmp_path)
    assert (error.code, error.hint) == ("model.is-adapter", "its base is model.model_name_or_path=the/base")


def test_an_unknown_hub_id_is_refused_as_unreachable_when_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    error = refusal("nobody/no-such-model")
    assert error.code == "model.offline"
    assert error.message.startswith("nobody/no-such-model is not in the cache")


def cache_of(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have the hub's cache hold these models."""
    import huggingface_hub

    repos = [SimpleNamespace(repo_id=name, repo_type="model") for name in names]
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: SimpleNamespace(repos=repos))


@pytest.mark.parametrize(
    ("kind", "code", "message", "hint"),
    [
        (
            "GatedRepoError",
            "model.gated",
            "some/model is gated, and this account has no access",
            "ask for access at https://huggingface.co/some/model, then `hf auth login`",
        ),
        (
            "RepositoryNotFoundError",
            "model.not-found",
            "no model some/model on the hub, and no such directory",
            "in the cache: other/thing, third/one",
        ),
        ("RevisionNotFoundError", "model.revision", "some/model has no revision None", "set model.revision"),
        (
            "OfflineModeIsEnabled",
            "model.offline",
            "some/model is not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)",
            "in the cache: other/thing, third/one",
        ),
    ],
)
def test_the_hubs_answers_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, kind: str, code: str, message: str, hint: str
) -> None:
    import transformers

    cache_of(monkeypatch, "third/one", "other/thing")

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("there was a problem") from type(kind, (Exception,), {})()

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    error = refusal("some/model")
    assert (error.code, error.message, error.hint) == (code, message, hint)


def test_a_misspelt_model_is_told_which_of_the_cache_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("there was a problem") from type("OfflineModeIsEnabled", (Exception,), {})()

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    cache_of(monkeypatch, "other/thing", "Qwen/Qwen3-0.6B")
    assert refusal("Qwen/Qwen-0.6B").hint == "did you mean Qwen/Qwen3-0.6B?"


def test_a_model_without_weights_or_with_damaged_ones_is_refused(broken: Path) -> None:
    (broken / "model.safetensors").write_bytes(b"nonsense")
    assert refusal(broken).code == "model.damaged"
    (broken / "model.safetensors").unlink()
    assert refusal(broken).code == "model.no-weights"


def test_an_encoder_is_refused_as_not_causal(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import T5Config

    T5Config(d_model=8, num_layers=1, num_heads=1, vocab_size=264).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, tmp_path / name)
    assert refusal(tmp_path).code == "model.not-causal"


def test_a_model_without_tokenizer_is_refused(broken: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).unlink()
    assert refusal(broken).code == "model.no-tokenizer"


def test_a_tokenizer_without_pad_and_end_token_is_refused(broken: Path) -> None:
    path = broken / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("pad_token", "eos_token")}
    path.write_text(json.dumps(kept))
    assert refusal(broken).code == "model.no-pad-token"


def test_rows_longer_than_the_context_are_refused(tiny_model: Path) -> None:
    config = models.load_config(section(tiny_model), str(tiny_model))
    models.check_lengths(config, 128)
    with pytest.raises(FinetuneError) as caught:
        models.check_lengths(config, 129)
    assert caught.value.message == "data.max_length is 129, and the model's context is 128 tokens"
    assert caught.value.hint == "data.max_length=128"


def test_token_ids_beyond_the_embedding_are_refused(tiny_model: Path) -> None:
    model = models.load_model(
        Recipe(name="x", source="x", model=section(tiny_model)), str(tiny_model), _config(tiny_model), CPU
    )
    models.check_token_ids(263, model)
    with pytest.raises(FinetuneError, match="token id 264, and the model's embedding has 264 rows"):
        models.check_token_ids(264, model)


def test_from_scratch_draws_the_same_weights_for_a_seed_and_not_the_trained_ones(tiny_model: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        recipe = Recipe(name="x", source="x", model=section(tiny_model, from_scratch=True), training={"seed": seed})
        drawn = models.load_model(recipe, str(tiny_model), _config(tiny_model), CPU)
        return drawn.get_input_embeddings().weight.detach()

    trained = Recipe(name="x", source="x", model=section(tiny_model))
    loaded = models.load_model(trained, str(tiny_model), _config(tiny_model), CPU).get_input_embeddings().weight
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert not torch.equal(weights(1), loaded)


def test_full_fine_tuning_keeps_float32_weights_and_adapters_take_what_is_asked(tiny_model: Path) -> None:
    full = Recipe(name="x", source="x", model=section(tiny_model))
    assert models.weights_dtype(full, CPU) is torch.float32
    asked = Recipe(name="x", source="x", model=section(tiny_model, dtype="bfloat16"), lora={"r": 4})
    assert models.weights_dtype(asked, CPU) is torch.bfloat16


def test_a_chat_template_is_judged_by_its_marks(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(section(tiny_model), str(tiny_model))
    assert models.chat_template(tokenizer, None) == models.Template(exists=True, masks_assistant=True)
    plain = tmp_path / "plain.jinja"
    plain.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    assert models.chat_template(tokenizer, str(plain)) == models.Template(exists=True, masks_assistant=False)
    tokenizer.chat_template = None
    assert models.chat_template(tokenizer, None) == models.Template(exists=False, masks_assistant=False)
    with pytest.raises(FinetuneError) as caught:
        models.chat_template(tokenizer, str(tmp_path / "none.jinja"))
    assert caught.value.code == "model.chat-template"


def _config(path: Path) -> object:
    return models.load_config(section(path), str(path))
