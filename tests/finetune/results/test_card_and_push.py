"""The model card of a run, and its way to the hub through a stand-in for the hub's client."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from finetune.results import made
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.results.card import model_card, write_card
from scao_hf.finetune.results.publishing import push


class Hub:
    """Notes what it is asked; `fails` is raised by the call of that name."""

    def __init__(self, fails: dict[str, Exception] | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.uploaded: dict[str, str] = {}
        self.fails = fails or {}

    def _called(self, name: str, **arguments: Any) -> None:
        self.calls.append((name, arguments))
        if name in self.fails:
            raise self.fails[name]

    def whoami(self) -> None:
        self._called("whoami")

    def create_repo(self, repository: str, **options: Any) -> None:
        self._called("create_repo", repository=repository, **options)

    def upload_folder(self, **options: Any) -> None:
        self._called("upload_folder", **options)
        folder = Path(options["folder_path"])
        self.uploaded = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def header(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def refused(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("no", response=response)


def test_a_card_states_base_data_optimizer_settings_results_versions_and_loading(tmp_path: Path) -> None:
    card = model_card(made.write_run(tmp_path / "run"), "me/support-lora", adapter=True)
    assert header(card) == {
        "base_model": "org/base-model",
        "base_model_relation": "adapter",
        "datasets": ["org/chats"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["scao-hf", "scao", "lora"],
    }
    for told in (
        "A LoRA adapter for org/base-model, trained on org/chats for 40 steps with the optimizer `scao`",
        'AutoPeftModelForCausalLM.from_pretrained("me/support-lora")',
        "| held-out loss | 3.000 | 1.500 |",
        "| perplexity | 20.09 | 4.48 |",
        "48 held-out rows",
        "| Its options | k_max 16 |",
        "| Learning rate | 0.002, cosine after 4 steps of warm-up |",
        "76,000 tokens in 20 s of training on CPU, 2 cores",
        "torch 2.6.0",
    ):
        assert told in card


def test_a_card_names_no_folder_of_this_machine_and_no_base_that_the_hub_does_not_know(tmp_path: Path) -> None:
    model, data = tmp_path / "my-base", tmp_path / "rows.jsonl"
    run = made.write_run(tmp_path / "run")
    info = {**run.info, "model": str(model), "dataset": str(data)}
    local = made.write_run(tmp_path / "local", {"run": info}, recipe={"model": str(model), "data": str(data)})
    card = model_card(local, "adapter", adapter=True)
    assert not {"base_model", "datasets"} & set(header(card))
    assert str(tmp_path) not in card
    assert "A LoRA adapter for my-base, trained on rows.jsonl" in card


def test_a_whole_model_and_a_run_without_held_out_rows_have_cards_of_their_own(tmp_path: Path) -> None:
    report = {**made.facts(tmp_path)["report"], "final_eval_loss": None, "initial_eval_loss": None}
    card = model_card(made.write_run(tmp_path / "run", {"report": report}, weights="model"), "model", adapter=False)
    assert (header(card)["library_name"], header(card)["base_model_relation"]) == ("transformers", "finetune")
    assert "Training loss, mean over all steps: 2.100. No rows were held out." in card
    merged = model_card(made.write_run(tmp_path / "adapted"), "merged", adapter=False)
    assert header(merged)["library_name"] == "transformers"
    assert 'AutoModelForCausalLM.from_pretrained("merged")' in merged


def test_a_card_from_before_the_end_of_a_run_states_no_results(tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run", {"status": "running", "report": None})
    card = model_card(run, "adapter", adapter=True)
    assert "The run had not ended when this was written." in card
    assert "held-out loss" not in card


def test_the_card_takes_the_place_of_the_one_that_the_libraries_made(tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run")
    (run.weights / "README.md").write_text("# Model Card for Model ID", encoding="utf-8")
    path = write_card(run)
    assert path.read_text(encoding="utf-8") == model_card(run, "adapter", adapter=True)
    assert sorted(file.name for file in run.weights.iterdir()) == ["README.md", "adapter_config.json"]


def test_push_makes_the_repository_and_uploads_the_weights_with_the_card_in_one_commit(tmp_path: Path) -> None:
    run, hub = made.write_run(tmp_path / "run"), Hub()
    pushed = push(run, "me/support-lora", private=True, api=hub)
    assert [name for name, _ in hub.calls] == ["whoami", "create_repo", "upload_folder"]
    made_with = {"repository": "me/support-lora", "repo_type": "model", "private": True, "exist_ok": True}
    assert hub.calls[1][1] == made_with
    assert hub.calls[2][1]["commit_message"] == "lora-sft: 40 steps of scao"
    assert sorted(hub.uploaded) == ["README.md", "adapter_config.json"]
    assert hub.uploaded["README.md"] == model_card(run, "me/support-lora", adapter=True)
    assert (pushed.url, pushed.notices) == ("https://huggingface.co/me/support-lora", [])


def test_push_says_where_the_base_of_an_adapter_is_not_on_the_hub(tmp_path: Path) -> None:
    run = made.write_run(tmp_path / "run", recipe={"model": str(tmp_path)})
    (notice,) = push(run, "me/support-lora", api=Hub()).notices
    assert notice.startswith(f"the adapter's base is {tmp_path}, which is not on the hub")


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        ("whoami", LocalTokenNotFoundError("no token"), "model.not-logged-in"),
        ("whoami", refused(401), "model.not-logged-in"),
        ("create_repo", refused(403), "model.forbidden"),
        ("create_repo", refused(500), "model.hub"),
        ("upload_folder", ConnectionError("no route"), "model.offline"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence_with_exit_code_4(
    call: str, error: Exception, code: str, tmp_path: Path
) -> None:
    with pytest.raises(FinetuneError) as caught:
        push(made.write_run(tmp_path / "run"), "me/support-lora", api=Hub({call: error}))
    assert (caught.value.code, caught.value.exit_code) == (code, 4)


def test_an_error_that_is_not_the_hubs_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        push(made.write_run(tmp_path / "run"), "me/x", api=Hub({"upload_folder": ZeroDivisionError()}))


def test_nothing_is_sent_offline_under_a_wrong_name_or_of_an_unfinished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, hub = made.write_run(tmp_path / "run"), Hub()
    unfinished = made.write_run(tmp_path / "stopped", {"status": "interrupted", "report": None})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for folder, name, code in (
        (run, "me/x", "model.offline"),
        (run, "no-owner", "config.repository"),
        (unfinished, "me/x", "model.no-weights"),
    ):
        with pytest.raises(FinetuneError) as caught:
            push(folder, name, api=hub)
        assert caught.value.code == code
    assert hub.calls == []


def test_the_result_of_a_push_is_json(tmp_path: Path) -> None:
    told = json.loads(json.dumps(push(made.write_run(tmp_path / "run"), "me/x", api=Hub()).to_dict()))
    assert told["files"] == ["README.md", "adapter_config.json"]
