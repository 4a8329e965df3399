"""Make the embedded assets: `python -m scao_hf.finetune.embedded.build {skeleton,dialogue,pretraining,pack} ...`.

The whole way from the two public texts to the packaged files:

    build skeleton    --output scao_hf/finetune/embedded/tiny-llama
    build dialogue    --source input.txt   --output scao_hf/finetune/embedded/shakespeare-dialogue.jsonl
    build pretraining --source train.jsonl --output runs/gsm8k-train.jsonl
    build pretraining --source test.jsonl --problems 200 --output runs/gsm8k-test.jsonl
    scao-finetune train tiny-llama data.path=runs/gsm8k-train.jsonl data.eval_path=runs/gsm8k-test.jsonl
    build pack        --run runs/tiny-llama --output scao_hf/finetune/embedded/tiny-llama
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scao_hf.finetune.embedded import texts
from scao_hf.finetune.embedded.tokenizer import VOCABULARY_SIZE, byte_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig

CONTEXT = 512
"""Longest sequence of the model in tokens, which are bytes."""

MAX_PACKED_BYTES = 3_000_000
"""The packaged model directory stays below this many bytes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; 0 when its files are written, 1 with a sentence when an input will not do."""
    options = _parser().parse_args(arguments)
    try:
        print(options.command(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scao_hf.finetune.embedded.build", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    skeleton = commands.add_parser("skeleton", help="write the configuration and the tokenizer of the tiny Llama")
    skeleton.set_defaults(command=_skeleton)

    dialogue = commands.add_parser("dialogue", help="make the dataset from Shakespeare's plays (speeches as text)")
    dialogue.add_argument("--source", type=Path, required=True, help="the plays: 'Name:' lines, verses, empty lines")
    dialogue.add_argument("--rows", type=int, default=1200, help="exchanges to keep")
    dialogue.add_argument("--max-tokens", type=int, default=256, help="longest exchange in tokens")
    dialogue.set_defaults(command=_dialogue)

    pretraining = commands.add_parser(
        "pretraining", help="make the pretraining text from GSM8K's questions and answers"
    )
    pretraining.add_argument("--source", type=Path, required=True, help="GSM8K's JSON lines: question, answer")
    pretraining.add_argument("--problems", type=int, help="problems to take, from the start; all by default")
    pretraining.set_defaults(command=_pretraining)

    pack = commands.add_parser("pack", help="turn a finished pretraining run into the packaged directory")
    pack.add_argument("--run", type=Path, required=True, help="the run's output directory")
    pack.set_defaults(command=_pack)

    for command in (skeleton, dialogue, pretraining, pack):
        command.add_argument("--output", type=Path, required=True, help="what to write")
    return parser


def model_config() -> LlamaConfig:
    """A Llama of 1,023,360 parameters over bytes: five layers of width 128, four heads, tied embeddings."""
    from transformers import LlamaConfig

    tokenizer = byte_tokenizer(CONTEXT)
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_skeleton(directory: Path) -> None:
    """Write what `from_pretrained` reads beside the weights: config, generation config, tokenizer, chat template."""
    from transformers import GenerationConfig

    directory.mkdir(parents=True, exist_ok=True)
    config = model_config()
    config.save_pretrained(directory)
    # The weights are stored in half precision; the declared dtype is the one `from_pretrained` loads them in.
    _edit_json(directory / "config.json", {"dtype": "float32"})
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(directory)
    byte_tokenizer(CONTEXT).save_pretrained(directory)
    # Transformers 4 does not know the class name that Transformers 5 writes; both know this one.
    _edit_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}, drop=("backend",))


def pack(run: Path, output: Path) -> int:
    """Write the model of a finished run to `output` as it is packaged, and return the directory's bytes.

    The weights become float16, the model card states the figures of the run's `run.json`.

    Args:
        run: output directory of `scao-finetune train tiny-llama`.
        output: a directory with nothing in it but such a package.

    Raises:
        ValueError: if the run is not finished, its model is another than `model_config()`, or the package is too big.
    """
    from safetensors.torch import save

    from scao_hf.finetune.embedded.card import model_card, run_figures

    card = model_card(run_figures(read_record(run)))
    tensors = half_precision(find_model(run))
    write_skeleton(output)
    (output / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    (output / "README.md").write_text(card, encoding="utf-8")
    packed_bytes = sum(path.stat().st_size for path in output.iterdir())
    if packed_bytes > MAX_PACKED_BYTES:
        raise ValueError(f"the package must stay below {MAX_PACKED_BYTES:,} bytes, {output} has {packed_bytes:,}")
    return packed_bytes


def read_record(run: Path) -> dict[str, Any]:
    """The run's `run.json`, if it says that the run was finished."""
    record: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    if record.get("status") != "finished":
        raise ValueError(f"{run} must be a finished run, its run.json has status {record.get('status')!r}")
    return record


def find_model(run: Path) -> Path:
    """The weights of a full fine-tuning run."""
    weights = run / "model" / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{run} must hold a full model, {weights} does not exist")
    return weights


def half_precision(weights: Path) -> dict[str, Tensor]:
    """The weights as float16, after checking that they are those of `model_config()`."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    tensors = load_file(weights)
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in LlamaForCausalLM(model_config()).named_parameters()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != expected:
        differing = sorted({name for name, _ in found.items() ^ expected.items()})
        raise ValueError(f"{weights} must hold the tensors of the tiny Llama, these differ: {', '.join(differing[:6])}")
    return {name: tensor.half() for name, tensor in tensors.items()}


def _skeleton(options: argparse.Namespace) -> str:
    write_skeleton(options.output)
    return f"wrote the configuration and the tokenizer to {options.output}"


def _dialogue(options: argparse.Namespace) -> str:
    rows = texts.dialogue_rows(options.source.read_text(encoding="utf-8"), options.rows, options.max_tokens)
    return _write_rows(options.output, [{"messages": row} for row in rows])


def _pretraining(options: argparse.Namespace) -> str:
    rows = texts.pretraining_rows(_problems(options.source)[: options.problems])
    return _write_rows(options.output, [{"text": row} for row in rows])


def _problems(source: Path) -> list[dict[str, str]]:
    problems = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, problem in enumerate(problems, start=1):
        if not isinstance(problem, dict) or not {"question", "answer"} <= problem.keys():
            raise ValueError(f"{source} must have a question and an answer in every row, row {number} has not")
    return problems


def _pack(options: argparse.Namespace) -> str:
    return f"wrote {pack(options.run, options.output):,} bytes to {options.output}"


def _write_rows(output: Path, rows: Sequence[object]) -> str:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(texts.json_lines(rows), encoding="utf-8")
    return f"wrote {len(rows):,} rows, {output.stat().st_size:,} bytes, to {output}"


def _edit_json(path: Path, values: dict[str, object], drop: Sequence[str] = ()) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | values
    kept = {key: value for key, value in content.items() if key not in drop}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
