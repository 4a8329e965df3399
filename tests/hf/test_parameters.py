"""What `parameter_groups` says that each parameter of a model is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hf import tiny
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer

from scao_hf import SCAO, SOAP, PublishedSCAO, parameter_groups
from scao_hf.hf.parameters import require_each_once

MODELS: dict[str, Callable[[], nn.Module]] = {"llama": tiny.llama, "gpt2": tiny.gpt2, "bert": tiny.bert}


def by_name(groups: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """`key` of the group that each named parameter is in."""
    return {name: group.get(key) for group in groups for name, _ in group["params"]}


def with_lora(model: nn.Module, **changes: Any) -> nn.Module:
    settled: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return get_peft_model(model, LoraConfig(**(settled | changes)))


def test_a_llama_has_matrices_an_embedding_a_head_and_vectors() -> None:
    kinds = by_name(parameter_groups(tiny.llama()), "kind")
    assert kinds["model.embed_tokens.weight"] == "embedding"
    assert kinds["lm_head.weight"] == "head"
    assert kinds["model.norm.weight"] == kinds["model.layers.1.input_layernorm.weight"] == "vector"
    projections = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.split(".")[-2] for name, kind in kinds.items() if kind == "matrix"} == set(projections)


def test_what_follows_from_the_kind_is_left_to_the_optimizer() -> None:
    sides = by_name(parameter_groups(tiny.llama()), "sides")
    assert set(sides.values()) == {None}


def treated(optimizer: Any) -> dict[str, set[str]]:
    """The names of the tensors in the state of each named parameter after a step."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    optimizer.step()
    return {
        name: {key for key, value in optimizer.state[param].items() if isinstance(value, torch.Tensor)}
        for group in optimizer.param_groups
        for name, param in zip(group["param_names"], group["params"], strict=True)
    }


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_embeddings_and_heads_take_adamw_in_scao_and_a_basis_of_their_columns_in_soap(name: str) -> None:
    assert treated(SCAO(parameter_groups(tiny.llama())))[name] == {"exp_avg", "exp_avg_sq"}
    soap = treated(SOAP(parameter_groups(tiny.llama())))[name]
    assert {key for key in soap if key.startswith("basis_")} == {"basis_1"}


def test_sides_asked_for_by_kind_hold_for_embeddings_and_heads() -> None:
    options = {kind: {"sides": "both"} for kind in ("embedding", "head")}
    names = "model.embed_tokens.weight", "lm_head.weight"
    for name in names:
        assert "vectors" in treated(SCAO(parameter_groups(tiny.llama(), options=options)))[name]
        assert {"basis_0", "basis_1"} <= treated(SOAP(parameter_groups(tiny.llama(), options=options)))[name]


def test_tied_embeddings_appear_once_as_the_embedding() -> None:
    kinds = by_name(parameter_groups(tiny.gpt2()), "kind")
    assert kinds["transformer.wte.weight"] == "embedding"
    assert "lm_head.weight" not in kinds


def test_conv1d_of_gpt2_is_a_matrix() -> None:
    kinds = by_name(parameter_groups(tiny.gpt2()), "kind")
    assert kinds["transformer.h.0.attn.c_attn.weight"] == kinds["transformer.h.1.mlp.c_proj.weight"] == "matrix"
    assert kinds["transformer.h.0.attn.c_attn.bias"] == "vector"


def test_a_classification_head_is_a_matrix_like_any_other() -> None:
    kinds = by_name(parameter_groups(tiny.bert()), "kind")
    assert kinds["classifier.weight"] == "matrix"
    assert kinds["bert.embeddings.position_embeddings.weight"] == "embedding"


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_every_trainable_parameter_is_in_one_group(build: Callable[[], nn.Module]) -> None:
    model = build()
    listed = [id(parameter) for group in parameter_groups(model) for _, parameter in group["params"]]
    assert sorted(listed) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())
def test_decay_is_that_of_trainer(build: Callable[[], nn.Module]) -> None:
    model = build()
    decaying = {n for n, decay in by_name(parameter_groups(model, 0.1), "weight_decay").items() if decay == 0.1}
    assert decaying == set(Trainer.get_decay_parameter_names(None, model)) & {n for n, _ in model.named_parameters()}


def test_other_names_can_be_kept_from_decaying() -> None:
    decay = by_name(parameter_groups(tiny.llama(), 0.1, no_decay=("embed",)), "weight_decay")
    assert decay["model.embed_tokens.weight"] == 0
    assert decay["lm_head.weight"] == 0.1


def test_lora_factors_are_told_apart() -> None:
    kinds = by_name(parameter_groups(with_lora(tiny.llama())), "kind")
    assert set(kinds.values()) == {"lora_a", "lora_b"}
    assert all((kind == "lora_a") == (".lora_A." in name) for name, kind in kinds.items())
    assert len(kinds) == 2 * 7 * 2


def test_dora_magnitudes_are_vectors_that_do_not_decay() -> None:
    groups = parameter_groups(with_lora(tiny.llama(), use_dora=True), 0.1)
    magnitudes = {n for n, kind in by_name(groups, "kind").items() if kind == "vector"}
    assert len(magnitudes) == 14
    assert all("lora_magnitude_vector" in name for name in magnitudes)
    assert {by_name(groups, "weight_decay")[name] for name in magnitudes} == {0.0}


def test_lora_of_an_embedding_has_no_basis_over_the_vocabulary() -> None:
    groups = parameter_groups(with_lora(tiny.llama(), target_modules=["embed_tokens"]))
    sides = {name.split(".")[-2]: side for name, side in by_name(groups, "sides").items()}
    shapes = {name.split(".")[-2]: tuple(p.shape) for group in groups for name, p in group["params"]}
    assert sides == {"lora_embedding_A": "left", "lora_embedding_B": "both"}
    assert shapes == {"lora_embedding_A": (4, tiny.VOCABULARY), "lora_embedding_B": (16, 4)}


def test_lora_of_a_head_has_no_basis_over_the_vocabulary() -> None:
    groups = parameter_groups(with_lora(tiny.llama(), target_modules=["lm_head"]))
    sides = {name.split(".")[-3]: side for name, side in by_name(groups, "sides").items()}
    assert sides == {"lora_A": None, "lora_B": "right"}


def test_modules_trained_beside_an_adapter_keep_their_kind() -> None:
    model = with_lora(tiny.llama(), target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    kinds = by_name(parameter_groups(model), "kind")
    assert {kind for name, kind in kinds.items() if "embed_tokens" in name} == {"embedding"}
    assert {kind for name, kind in kinds.items() if "lm_head" in name} == {"head"}


def test_stacked_experts_are_matrices_and_a_class_token_a_vector() -> None:
    model = nn.Module()
    model.experts = nn.Parameter(torch.zeros(4, 6, 8))
    model.class_token = nn.Parameter(torch.zeros(1, 1, 8))
    assert by_name(parameter_groups(model), "kind") == {"experts": "matrix", "class_token": "vector"}


def test_a_subclass_of_embedding_is_an_embedding() -> None:
    class Scaled(nn.Embedding):
        pass

    assert by_name(parameter_groups(nn.Sequential(Scaled(10, 4))), "kind") == {"0.weight": "embedding"}


def test_the_head_of_a_model_of_ones_own_is_known_by_name_and_size() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(50, 8), "mlp": nn.Linear(8, 8), "head": nn.Linear(8, 50)})
    kinds = by_name(parameter_groups(model), "kind")
    assert kinds["head.weight"] == "head"
    assert kinds["mlp.weight"] == "matrix"
    model = nn.ModuleDict({"tokens": nn.Embedding(50, 8), "head": nn.Linear(8, 3)})
    assert by_name(parameter_groups(model), "kind")["head.weight"] == "matrix"


def test_wrappers_leave_no_trace_in_the_names() -> None:
    plain = by_name(parameter_groups(tiny.llama()), "kind")
    assert by_name(parameter_groups(torch.compile(tiny.llama())), "kind") == plain
    assert by_name(parameter_groups(nn.DataParallel(tiny.llama())), "kind") == plain


def test_frozen_parameters_are_left_out() -> None:
    model = tiny.llama()
    model.model.requires_grad_(False)
    assert by_name(parameter_groups(model), "kind") == {"lm_head.weight": "head"}


def test_group_zero_has_the_rate_that_was_asked_for() -> None:
    groups = parameter_groups(tiny.llama(), lr=1e-2, lr_scale={"matrix": 0.5, "embedding": 2.0})
    assert groups[0]["lr"] == 1e-2
    assert {group["kind"]: group["lr"] for group in groups} == {
        "head": 1e-2,
        "vector": 1e-2,
        "matrix": 5e-3,
        "embedding": 2e-2,
    }
    assert {group["kind"]: group["lr_scale"] for group in groups}["matrix"] == 0.5


def test_the_order_depends_on_the_model_alone() -> None:
    first, second = parameter_groups(tiny.llama()), parameter_groups(tiny.llama())
    assert [[name for name, _ in group["params"]] for group in first] == [
        [name for name, _ in group["params"]] for group in second
    ]


def test_options_of_a_kind_have_the_last_word() -> None:
    groups = parameter_groups(
        tiny.llama(), 0.1, options={"head": {"betas": (0.8, 0.9), "sides": "none"}, "vector": {"weight_decay": 0.3}}
    )
    head = next(group for group in groups if group["kind"] == "head")
    assert (head["betas"], head["sides"], head["weight_decay"]) == ((0.8, 0.9), "none", 0.1)
    assert {group["weight_decay"] for group in groups if group["kind"] == "vector"} == {0.3}


@pytest.mark.parametrize("optimizer", [SCAO, PublishedSCAO, SOAP])
def test_optimizers_keep_the_names_and_what_the_groups_say(optimizer: Any) -> None:
    built = optimizer(parameter_groups(tiny.llama(), 0.1, lr=1e-2, options={"head": {"eps": 1e-6}}), lr=1.0)
    head = next(group for group in built.param_groups if group["kind"] == "head")
    assert (head["lr"], head["eps"], head["weight_decay"], head["param_names"]) == (1e-2, 1e-6, 0.1, ["lm_head.weight"])


def test_without_names_a_group_holds_the_parameters_alone() -> None:
    groups = parameter_groups(tiny.llama(), names=False)
    assert all(isinstance(parameter, nn.Parameter) for group in groups for parameter in group["params"])


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], r".*\.(q|v)_proj", [r"model\.layers\.\d\.self_attn\.[qv]_proj"]]
)
def test_targets_narrow_what_is_preconditioned(targets: Any) -> None:
    sides = by_name(parameter_groups(tiny.llama(), target_modules=targets), "sides")
    chosen = {name for name, side in sides.items() if side != "none"}
    assert chosen == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qv"}


@pytest.mark.parametrize("targets", [["q_proj"], r".*\.q_proj", r"model\.layers\.\d\.self_attn\.q_proj"])
def test_targets_name_the_module_below_an_adapter(targets: Any) -> None:
    sides = by_name(parameter_groups(with_lora(tiny.llama()), target_modules=targets), "sides")
    assert {name.split(".")[-4] for name, side in sides.items() if side != "none"} == {"q_proj"}


@pytest.mark.parametrize("build", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
def test_all_linear_leaves_out_the_head_and_the_embeddings(build: Callable[[], nn.Module]) -> None:
    groups = parameter_groups(build(), target_modules="all-linear")
    chosen = {group["kind"] for group in groups if group.get("sides") != "none"}
    assert chosen - {"vector"} == {"matrix"}


def test_a_target_that_matches_nothing_is_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'query' matches no module .*self_attn"):
        parameter_groups(tiny.llama(), target_modules="query")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 1.0, "lr_scale": {"embeding": 2.0}}, "did you mean 'embedding'"),
        ({"options": {"vectors": {}}}, "did you mean 'vector'"),
        ({"lr_scale": {"head": 2.0}}, "give lr as well"),
        ({"lr": 1.0, "lr_scale": {"head": 0.0}}, "must be positive, got 0.0"),
        ({"options": {"head": {"lr": 1.0}}}, "use lr_scale"),
        ({"options": {"head": {"kind": "matrix"}}}, "must not set kind"),
        ({"options": {"head": {"sides": "top"}}}, "must be one of auto, both, left, right, none, got 'top'"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative, got -0.1"),
    ],
)
def test_misplaced_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(tiny.llama(), **arguments)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(tiny.llama().requires_grad_(False))


def test_parameters_instead_of_a_model_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got list"):
        parameter_groups(list(tiny.llama().parameters()))  # type: ignore[arg-type]


def test_a_parameter_in_two_groups_or_in_none_is_an_error() -> None:
    first, second = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="parameter first is in the groups twice"):
        require_each_once([{"params": [("first", first)]}, {"params": [("first", first)]}], [first])
    with pytest.raises(ValueError, match="1 trainable parameters of the model are in no group"):
        require_each_once([{"params": [("first", first)]}], [first, second])
    with pytest.raises(ValueError, match="is not a trainable parameter"):
        require_each_once([{"params": [second]}], [first])


def test_groups_need_torch_and_nothing_of_transformers() -> None:
    program = """
import sys
from torch import nn
import scao_hf
scao_hf.SCAO(scao_hf.parameter_groups(nn.Linear(3, 4), lr=0.1))
assert not {"transformers", "peft", "accelerate"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
