"""A tokenizer whose tokens are the 256 bytes and four special tokens, with a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
START_OF_TEXT = "<|startoftext|>"
START_OF_TURN = "<|im_start|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (PAD, START_OF_TEXT, START_OF_TURN, END_OF_TURN)

VOCABULARY_SIZE = 264
"""Rows of the embedding: 256 bytes and 4 special tokens, rounded up to a multiple of eight."""

# The end of a turn lies inside the generation block, so that a loss on the assistant alone also teaches when to stop.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}\n"
    "{%- if message['role'] == 'assistant' -%}\n"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}\n"
    "{%- else -%}\n"
    "{{- message['content'] + '<|im_end|>' -}}\n"
    "{%- endif -%}\n"
    "{{- '\\n' -}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "{{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n"
)


def byte_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer: id b for the byte b, then the special tokens 256 to 259.

    A token a byte of UTF-8, so `decode(encode(text)) == text` for every text. Nothing is added in front or behind;
    the chat template ends every turn with `<|im_end|>`, which is also the end of a sequence.

    Args:
        context: longest sequence the model reads, in tokens (`model_max_length`).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Nothing is added; said explicitly, since some releases of transformers write this and others leave it out.
    tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START_OF_TEXT,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        model_max_length=context,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def byte_symbols() -> list[str]:
    """The printable character that byte-level BPE writes for each byte, in the order of the bytes.

    Printable bytes of Latin-1 stand for themselves; the others are moved to U+0100 and beyond, in order.

    Source: Radford et al. (2019), GPT-2, `bytes_to_unicode`.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]
