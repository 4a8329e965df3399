"""The packaged tiny Llama, its tokenizer and the packaged dialogue, and the commands that make them."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from scao_hf.finetune.embedded import build, dataset_path, model_directory, texts

PAD, START_OF_TEXT, START_OF_TURN, END_OF_TURN = 256, 257, 258, 259

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yö"},
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "!"},
]

PLAY = """\
First Citizen:
Speak.

All:
Speak,
speak.

Exit, pursued by a bear

ALL:

Clown:
Once.

Clown:
Twice.

Wife:
Thrice.

Clown:
Alone.
"""

PROBLEM = {
    "question": "Ann has 48 pens and sells half. How many are left? ",
    "answer": "She sold 48/2 = <<48/2=24>>24 pens.\nSo 48-24 = <<48-24=24>>24 are left.\n#### 24",
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(model_directory())


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(model_directory())


@pytest.fixture(scope="module")
def dialogue() -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in dataset_path().read_text(encoding="utf-8").splitlines()]


def any_text(seed: int, length: int = 3000) -> str:
    """Characters from all of Unicode but the surrogates, which UTF-8 cannot write."""
    draw = random.Random(seed)
    points = [draw.randrange(0x110000 - 0x800) for _ in range(length)]
    return "".join(chr(point if point < 0xD800 else point + 0x800) for point in points)


def test_importing_the_asset_paths_loads_neither_torch_nor_transformers() -> None:
    program = "import sys, scao_hf.finetune.embedded; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "two  spaces , and a comma .",
        "don 't",
        "\r\n\t\x00\x7f\ufeff",
        "Ünïcödé 🎉 e\u0301",
        *map(any_text, range(3)),
    ],
    ids=lambda text: f"{len(text)}-characters",
)
def test_a_token_is_a_byte_of_utf8_and_decoding_gives_the_text_back(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    tokens = tokenizer(text)["input_ids"]
    assert tokens == list(text.encode("utf-8"))
    assert tokenizer.decode(tokens) == text


def test_special_tokens_follow_the_bytes_and_fit_the_embedding(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM
) -> None:
    assert tokenizer("<|im_start|>a<|im_end|>")["input_ids"] == [START_OF_TURN, ord("a"), END_OF_TURN]
    ids = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ids == (PAD, START_OF_TEXT, END_OF_TURN)
    assert len(tokenizer) == 260 <= model.get_input_embeddings().num_embeddings
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == ids


def test_the_chat_template_writes_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYö<|im_end|>\n"
        "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n!<|im_end|>\n"
    )


def test_the_generation_prompt_is_where_the_reply_of_a_longer_conversation_begins(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = tokenizer.apply_chat_template(CONVERSATION[:2], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False).startswith(prompt + "Yö<|im_end|>")


def test_the_assistant_mask_covers_each_reply_and_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    supervised = [t for t, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert supervised == [*"Yö".encode(), END_OF_TURN, ord("!"), END_OF_TURN]


def test_trl_supervises_the_replies_alone_with_assistant_only_loss(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(tmp_path), assistant_only_loss=True, max_length=256, report_to="none", use_cpu=True, bf16=False
    )
    rows = Dataset.from_list([{"messages": CONVERSATION}])
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    labels = next(iter(trainer.get_train_dataloader()))["labels"][0]
    assert labels[labels != -100].tolist() == [*"Yö".encode(), END_OF_TURN, ord("!"), END_OF_TURN]


@pytest.mark.skipif(transformers.__version__ < "5", reason="packaged by transformers 5, which writes other keys than 4")
def test_the_packaged_files_are_the_ones_that_the_build_writes(tmp_path: Path) -> None:
    build.write_skeleton(tmp_path)
    for written in tmp_path.iterdir():
        assert without_version(model_directory() / written.name) == without_version(written), written.name


def without_version(path: Path) -> Any:
    if path.suffix != ".json":
        return path.read_text(encoding="utf-8")
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "transformers_version"}


def test_the_package_is_small_and_holds_the_documented_number_of_parameters(model: LlamaForCausalLM) -> None:
    attention, feed_forward, norms = 4 * 128 * 128, 3 * 128 * 344, 2 * 128
    parameters = 264 * 128 + 5 * (attention + feed_forward + norms) + 128
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters == 1_023_360
    assert sum(path.stat().st_size for path in model_directory().iterdir()) < 3_000_000
    assert (model_directory() / "model.safetensors").stat().st_size < 2 * parameters + 10_000


def test_the_model_loads_in_single_precision(model: LlamaForCausalLM) -> None:
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_model_has_learned_its_text_and_not_the_dialogue(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dialogue: list[list[dict[str, str]]]
) -> None:
    # Neither text was trained on. A uniform guess costs ln 256 = 5.5 nats a byte, English letters alone about 2.9.
    answer = texts.plain_answer(PROBLEM["answer"])
    problem = [{"role": "user", "content": PROBLEM["question"]}, {"role": "assistant", "content": answer}]
    plays = [loss_of(model, tokenizer, row) for row in dialogue[::100]]
    assert loss_of(model, tokenizer, problem) < 1.3
    assert loss_of(model, tokenizer, problem) + 0.5 < sum(plays) / len(plays) < math.log(256)


def loss_of(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, row: list[dict[str, str]]) -> float:
    tokens = tokenizer(texts.render_chat(row), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=tokens, labels=tokens).loss.item()


QUESTIONS = (
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
    "Anna reads 12 pages a day. How many pages does she read in a week?",
    "A box holds 24 pens. How many pens are in 5 boxes?",
    "Sam has 10 dollars and spends half of them. How many dollars are left?",
)


def test_greedy_replies_end_their_turn_three_times_in_four(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    replies = [greedy_reply(model, tokenizer, question) for question in QUESTIONS]
    assert sum(END_OF_TURN in reply for reply in replies) >= 3
    assert all(tokenizer.decode(reply, skip_special_tokens=True).strip() for reply in replies)


def greedy_reply(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = model.generate(**prompt, do_sample=False, max_new_tokens=300)[0]
    return written[prompt["input_ids"].shape[1] :].tolist()


def test_every_dialogue_row_is_one_exchange_of_two_speakers(dialogue: list[list[dict[str, str]]]) -> None:
    assert len(dialogue) == 1200
    for row in dialogue:
        assert [message["role"] for message in row] == ["user", "assistant"]
        names, words = zip(*(message["content"].split(":\n", 1) for message in row), strict=True)
        assert names[0] != names[1]
        assert all(name == name.upper() for name in names)
        assert all(words)


def test_no_speech_of_some_length_stands_in_two_dialogue_rows(dialogue: list[list[dict[str, str]]]) -> None:
    long = [message["content"] for row in dialogue for message in row if len(message["content"]) > 60]
    assert len(set(long)) == len(long)


def test_the_dialogue_is_short_rows_in_a_small_file(
    tokenizer: PreTrainedTokenizerFast, dialogue: list[list[dict[str, str]]]
) -> None:
    lengths = [len(tokenizer.apply_chat_template(row, return_dict=True)["input_ids"]) for row in dialogue]
    assert max(lengths) <= 256
    assert lengths == [texts.chat_tokens(row) for row in dialogue]
    assert 150_000 < dataset_path().stat().st_size < 300_000


def test_exchanges_need_two_speakers_in_a_row_and_use_no_speech_twice() -> None:
    assert list(texts.exchanges(texts.speeches(PLAY))) == [
        [
            {"role": "user", "content": "FIRST CITIZEN:\nSpeak."},
            {"role": "assistant", "content": "ALL:\nSpeak,\nspeak."},
        ],
        [{"role": "user", "content": "CLOWN:\nTwice."}, {"role": "assistant", "content": "WIFE:\nThrice."}],
    ]


def test_dialogue_rows_are_taken_at_even_distances_from_those_that_fit() -> None:
    play = "\n\n".join(f"{'AB'[n % 2]}:\n{n:02d}" for n in range(16))
    assert [row[0]["content"] for row in texts.dialogue_rows(play, rows=4, max_tokens=40)] == [
        "A:\n00", "A:\n04", "A:\n08", "A:\n12",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must not exceed the 8 exchanges of at most 40 tokens, got 9"):
        texts.dialogue_rows(play, rows=9, max_tokens=40)


def test_pretraining_text_is_a_chat_and_prose_without_the_calculator(tokenizer: PreTrainedTokenizerFast) -> None:
    question = "Ann has 48 pens and sells half. How many are left?"
    answer = "She sold 48/2 = 24 pens.\nSo 48-24 = 24 are left.\nThe answer is 24."
    chat, prose = texts.pretraining_rows([PROBLEM])
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert chat + "\n" == tokenizer.apply_chat_template(messages, tokenize=False)
    assert prose == f"<|startoftext|>{question}\n{answer}<|im_end|>"


def test_the_build_commands_write_rows_and_name_a_bad_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "problems.jsonl", tmp_path / "new" / "rows.jsonl"
    source.write_text(3 * (json.dumps(PROBLEM) + "\n"))
    assert build.main(["pretraining", "--source", str(source), "--problems", "2", "--output", str(output)]) == 0
    assert [list(json.loads(line)) for line in output.read_text().splitlines()] == 4 * [["text"]]

    source.write_text(json.dumps(PROBLEM) + '\n{"question": "?"}\n')
    assert build.main(["pretraining", "--source", str(source), "--output", str(tmp_path / "none.jsonl")]) == 1
    assert "must have a question and an answer in every row, row 2 has not" in capsys.readouterr().err
    assert build.main(["dialogue", "--source", str(tmp_path / "no.txt"), "--output", str(tmp_path / "none.jsonl")]) == 1
    assert "no.txt" in capsys.readouterr().err
    assert not (tmp_path / "none.jsonl").exists()


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """The output directory of a full run, with random weights and made-up figures."""
    run = tmp_path / "run"
    torch.manual_seed(0)
    LlamaForCausalLM(build.model_config()).save_pretrained(run / "model")
    report = {
        "optimizer": "scao",
        "steps": 1234,
        "tokens": 2_527_232,
        "train_seconds": 660.0,
        "initial_eval_loss": 5.6,
        "final_eval_loss": math.log(2),
    }
    overrides = ["data.path=/home/ann/secret.jsonl", "data.eval_path=b.jsonl", "training.max_steps=1234"]
    (run / "run.json").write_text(json.dumps({"status": "finished", "overrides": overrides, "report": report}))
    return run


def test_packing_rounds_the_weights_to_half_precision_and_keeps_the_model(finished_run: Path, tmp_path: Path) -> None:
    packed_bytes = build.pack(finished_run, tmp_path / "packed")
    assert packed_bytes == sum(path.stat().st_size for path in (tmp_path / "packed").iterdir()) < 3_000_000
    original = LlamaForCausalLM.from_pretrained(finished_run / "model").state_dict()
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed").state_dict()
    assert packed.keys() == original.keys()
    for name, tensor in packed.items():
        assert torch.equal(tensor, original[name].half().float()), name


def test_the_model_card_states_the_figures_of_the_run(finished_run: Path, tmp_path: Path) -> None:
    build.pack(finished_run, tmp_path / "packed")
    card = (tmp_path / "packed" / "README.md").read_text()
    assert "1,234 steps with scao" in card
    assert "2,527,232 tokens" in card
    assert "11 minutes" in card
    assert "0.6931 nats a token (1.000 bits)" in card
    assert "5.6000" in card
    assert "and beside the files training.max_steps=1234." in card
    assert "/home" not in card


def test_packing_refuses_an_unfinished_run(finished_run: Path, tmp_path: Path) -> None:
    (finished_run / "run.json").write_text('{"status": "interrupted"}')
    with pytest.raises(ValueError, match=r"must be a finished run, its run\.json has status 'interrupted'"):
        build.pack(finished_run, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_packing_refuses_another_model(finished_run: Path, tmp_path: Path) -> None:
    config = build.model_config()
    config.num_hidden_layers = 4
    LlamaForCausalLM(config).save_pretrained(finished_run / "model")
    with pytest.raises(ValueError, match=r"must hold the tensors of the tiny Llama, these differ: model\.layers\.4"):
        build.pack(finished_run, tmp_path / "packed")
    assert not (tmp_path / "packed" / "model.safetensors").exists()
