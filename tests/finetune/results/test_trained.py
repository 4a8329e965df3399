"""What is done with the weights of a run: asked, talked with, evaluated, merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.results import merging
from scao_hf.finetune.results.evaluation import evaluate_model, evaluate_run
from scao_hf.finetune.results.folder import RunFolder, open_run
from scao_hf.finetune.results.generation import Drawing, generate, open_conversation
from scao_hf.finetune.results.history import read_history
from scao_hf.finetune.results.merging import TOLERANCES, merge

GREEDY = Drawing(tokens=12, temperature=0.0, seed=0)


# What a run notes for its report


def test_a_run_notes_the_rank_of_every_layer_by_its_name_and_its_memory(lora_run: RunFolder) -> None:
    ranks = read_history(lora_run.path).ranks
    assert "layers.0.self_attn.q_proj.lora_A" in ranks
    # Seven linear layers with two factors each.
    assert len(ranks) == 14
    assert all(rank > 0 for by_step in ranks.values() for rank in by_step.values())
    noted = lora_run.facts["memory"]
    assert noted["gradients"] == 4 * lora_run.info["trainable_parameters"]
    buffers = noted["weights"] - 4 * lora_run.info["total_parameters"]
    assert 0 <= buffers < 100  # The frequencies of the rotary embedding.
    assert noted["optimizer"] == lora_run.report["optimizer_state_bytes"]
    assert noted["peak_of"] == "the process"


def test_a_run_leaves_a_card_of_its_own_beside_its_weights(lora_run: RunFolder) -> None:
    card = (lora_run.weights / "README.md").read_text(encoding="utf-8")
    assert f"| held-out loss | {lora_run.report['initial_eval_loss']:.3f} |" in card


# Asking


def test_the_base_answers_as_before_training_and_the_trained_model_otherwise(lora_run: RunFolder) -> None:
    drawing = Drawing(tokens=48, temperature=0.7, seed=42)
    (reply,) = generate(lora_run, [lora_run.report["sample_prompt"]], drawing, base=True)
    assert reply.base == lora_run.report["sample_before"]
    assert reply.text == lora_run.report["sample_after"]
    assert reply.base != reply.text


def test_a_whole_model_answers_as_it_did_at_the_end_of_its_run(full_run: RunFolder) -> None:
    drawing = Drawing(tokens=48, temperature=0.7, seed=42)
    (reply,) = generate(full_run, [full_run.report["sample_prompt"]], drawing, base=True)
    assert (reply.base, reply.text) == (full_run.report["sample_before"], full_run.report["sample_after"])


def test_without_temperature_an_answer_does_not_depend_on_the_seed(lora_run: RunFolder) -> None:
    answers = {
        generate(lora_run, ["what is 3?"], Drawing(tokens=12, temperature=0.0, seed=seed))[0].text for seed in (1, 2)
    }
    assert len(answers) == 1


def test_an_answer_comes_in_pieces_and_the_next_turn_knows_the_ones_before(lora_run: RunFolder) -> None:
    conversation = open_conversation(lora_run, GREEDY, system="Be brief.")
    pieces: list[str] = []
    first = conversation.say("what is 1?", pieces.append)
    assert "".join(pieces).strip() == first
    conversation.say("what is 2?")
    assert [turn["role"] for turn in conversation.turns] == ["system", "user", "assistant", "user", "assistant"]
    conversation.reset()
    assert conversation.turns == [{"role": "system", "content": "Be brief."}]
    assert conversation.say("what is 1?") == first


def test_there_is_no_talking_without_a_chat_template(lora_run: RunFolder, tmp_path: Path) -> None:
    run = open_run(shutil.copytree(lora_run.path, tmp_path / "run"))
    (run.weights / "chat_template.jinja").unlink()
    with pytest.raises(FinetuneError) as caught:
        open_conversation(run, GREEDY)
    assert (caught.value.code, caught.value.exit_code) == ("model.no-chat-template", 4)


# Evaluating


@pytest.mark.parametrize("kind", ["lora_run", "full_run"])
def test_a_run_has_the_loss_that_it_recorded_on_the_rows_that_it_held_out(
    kind: str, request: pytest.FixtureRequest
) -> None:
    run: RunFolder = request.getfixturevalue(kind)
    found = evaluate_run(run, None)
    assert found.loss == pytest.approx(run.report["final_eval_loss"], rel=1e-6)
    assert (found.recorded_loss, found.rows) == (run.report["final_eval_loss"], 4)
    assert found.perplexity == pytest.approx(torch.tensor(found.loss).exp().item(), rel=1e-5)


def test_other_data_are_evaluated_whole_and_in_their_own_format(lora_run: RunFolder, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"line number {n}"}) + "\n" for n in range(6)), encoding="utf-8")
    found = evaluate_run(lora_run, str(data))
    assert (found.rows, found.loss_on, found.recorded_loss) == (6, "all", None)


def test_the_base_alone_has_the_loss_from_before_training(
    lora_run: RunFolder, chats_file: Path, tiny_model: Path
) -> None:
    found = evaluate_model(str(tiny_model), str(chats_file), ["use_cpu=true"])
    assert (found.rows, found.loss_on) == (24, "assistant")
    assert found.loss == pytest.approx(lora_run.report["initial_eval_loss"], rel=0.05)


def test_a_run_that_held_nothing_out_asks_for_data(lora_run: RunFolder, tmp_path: Path) -> None:
    run = open_run(shutil.copytree(lora_run.path, tmp_path / "run"))
    text = run.resolved.read_text(encoding="utf-8").replace("test_split_size: 4", "test_split_size: null")
    run.resolved.write_text(text, encoding="utf-8")
    with pytest.raises(FinetuneError) as caught:
        evaluate_run(run, None)
    assert (caught.value.code, caught.value.exit_code) == ("data.nothing-held-out", 3)


# Merging


@pytest.mark.parametrize(
    "kind",
    [
        "lora.lora_alpha=8",
        "lora.use_dora=true",
        "lora.use_rslora=true",
        "lora.init_lora_weights=pissa",
        "lora.init_lora_weights=olora",
    ],
)
def test_a_merged_model_has_the_loss_of_its_run_and_needs_neither_peft_nor_the_base(
    kind: str, train: Callable[..., RunFolder], chats_file: Path, tmp_path: Path
) -> None:
    run, out = train(kind), tmp_path / "merged"
    merged = merge(run, out)
    assert merged.error <= merged.tolerance == TOLERANCES[torch.float32]
    assert merged.tokens > 100
    assert (out / "config.json").is_file()
    assert not (out / "adapter_config.json").exists()
    assert "library_name: transformers" in (out / "README.md").read_text(encoding="utf-8")
    alone = evaluate_model(str(out), str(chats_file), ["use_cpu=true"])
    through_adapter = evaluate_run(run, str(chats_file))
    assert alone.loss == pytest.approx(through_adapter.loss, rel=1e-5)
    assert evaluate_run(run, None).loss == pytest.approx(run.report["final_eval_loss"], rel=1e-4)


def test_weights_can_be_merged_in_another_precision(lora_run: RunFolder, tmp_path: Path) -> None:
    merged = merge(lora_run, tmp_path / "merged", "bfloat16")
    assert merged.dtype == "bfloat16"
    assert 0 < merged.error <= merged.tolerance == TOLERANCES[torch.bfloat16]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_merge_that_changes_the_model_is_refused_and_leaves_nothing(
    lora_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, safe_merge: self.unload(), raising=False)
    with pytest.raises(FinetuneError, match="the merged model is not what base and adapter are") as caught:
        merge(lora_run, tmp_path / "merged")
    assert (caught.value.code, caught.value.exit_code) == ("model.merge-differs", 4)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_merged_is_refused_before_anything_is_loaded(
    lora_run: RunFolder, full_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging.weights, "load_trained", lambda *_: pytest.fail("loaded"))
    quantized = open_run(shutil.copytree(lora_run.path, tmp_path / "quantized"))
    text = quantized.resolved.read_text(encoding="utf-8")
    quantized.resolved.write_text(text.replace("quantization: null", "quantization: {load_in_4bit: true}"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").touch()
    for run, out, code in (
        (full_run, "merged", "config.nothing-to-merge"),
        (quantized, "merged", "config.quantized-merge"),
        (lora_run, "used", "config.output-exists"),
    ):
        with pytest.raises(FinetuneError) as caught:
            merge(run, tmp_path / out)
        assert (caught.value.code, caught.value.exit_code) == (code, 2)
