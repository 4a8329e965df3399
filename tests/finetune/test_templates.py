"""Chat templates: TRL's versions for training, templates of others, chats that a template refuses, tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scao_hf.finetune import templates
from scao_hf.finetune.config import ModelSection
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.model import chat_template, load_tokenizer
from scao_hf.finetune.preview import preview
from scao_hf.finetune.recipes import load_recipe

ALTERNATING = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ message['content'] + eos_token }}{% endfor %}"
)
WITH_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m['role'] + ':' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{% if m['tool_calls'] is defined %}"
    "{% for c in m['tool_calls'] %}{{ c['function']['arguments'] | tojson }}{% endfor %}{% endif %}"
    "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(ModelSection(model_name_or_path=str(tiny_model)), str(tiny_model))


def trls_template(name: str) -> str:
    import trl

    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip("this release of TRL has no training templates with marks")
    return path.read_text(encoding="utf-8")


def test_trls_training_version_marks_what_the_assistant_says(tokenizer: Any) -> None:
    tokenizer.chat_template = trls_template("qwen3")
    assert not templates.is_marked(tokenizer.chat_template)
    assert templates.is_marked(templates.training_template(tokenizer))
    assert chat_template(tokenizer, None).masks_assistant


def test_a_preview_by_trls_training_version_trains_every_reply(
    recipe_file: Path, rows_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "qwen3.jinja"
    path.write_text(trls_template("qwen3"), encoding="utf-8")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "one"}]
    data = f"data.path={rows_file([{'messages': turns + turns}])}"
    given = ["data.test_split_size=null", data, f"chat_template_path={path}", "max_length=128"]
    found = preview(load_recipe(str(recipe_file), given))
    assert found.loss_on == "assistant"
    trained = "".join(span.text for span in found.samples[0].spans if span.fate == "trained")
    assert trained.count("one") == 2
    assert trained.count("<|im_end|>") == 2


def test_a_template_nobody_knows_has_no_training_version(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert templates.training_template(tokenizer) is None
    tokenizer.chat_template = None
    assert templates.training_template(tokenizer) is None


def test_a_tokenizers_template_is_taken_over_with_its_end_token_and_the_original_stays(
    tokenizer: Any, tmp_path: Path
) -> None:
    other = load_tokenizer(ModelSection(model_name_or_path="tiny-llama"), tokenizer.name_or_path)
    other.add_tokens(["<end>"], special_tokens=True)
    other.eos_token, other.chat_template = "<end>", ALTERNATING
    other.save_pretrained(tmp_path / "other")
    before = tokenizer.chat_template
    adopted = templates.with_template(tokenizer, str(tmp_path / "other"))
    assert (adopted.chat_template, adopted.eos_token) == (ALTERNATING, "<end>")
    assert adopted("<end>")["input_ids"] == [adopted.eos_token_id]
    assert (tokenizer.chat_template, tokenizer.eos_token) == (before, "<|im_end|>")


def test_a_template_file_needs_a_name_that_trl_takes_for_one(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "template.txt").write_text(ALTERNATING, encoding="utf-8")
    with pytest.raises(FinetuneError, match=r"does not end in \.jinja or \.j2"):
        templates.with_template(tokenizer, str(tmp_path / "template.txt"))


def test_a_chat_that_the_template_refuses_is_named_before_weights_are_loaded(
    recipe_file: Path, rows_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scao_hf.finetune import model
    from scao_hf.finetune.run import finetune

    (tmp_path / "strict.jinja").write_text(ALTERNATING, encoding="utf-8")
    turn, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    path = rows_file([{"messages": [turn, reply]}, {"messages": [turn, turn, reply]}])
    monkeypatch.setattr(model, "load_model", lambda *_: pytest.fail("weights were loaded"))
    given = [f"data.path={path}", f"chat_template_path={tmp_path / 'strict.jinja'}", "data.test_split_size=null"]
    with pytest.raises(FinetuneError) as caught:
        finetune(load_recipe(str(recipe_file), given))
    assert (caught.value.code, caught.value.exit_code) == ("data.chat-template", 3)
    assert caught.value.message == f"{path}:2: the chat template cannot write this chat: roles must alternate"


def test_tool_calls_reach_the_template_with_their_own_arguments_alone(
    recipe_file: Path, rows_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "tools.jinja").write_text(WITH_TOOLS, encoding="utf-8")

    def row(arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}}
        return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}], **more}

    path = rows_file(
        [
            row({"a": 1}, tools=[{"name": "f"}]),
            row({"b": "x"}),
            {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "no"}]},
        ]
    )
    given = [f"data.path={path}", f"chat_template_path={tmp_path / 'tools.jinja'}", "data.test_split_size=null"]
    found = preview(load_recipe(str(recipe_file), given))
    assert ["".join(span.text for span in sample.spans) for sample in found.samples] == [
        '[{"name": "f"}]user:?assistant:{"a": 1}<|im_end|>',
        'user:?assistant:{"b": "x"}<|im_end|>',
        "user:?assistant:no<|im_end|>",
    ]
