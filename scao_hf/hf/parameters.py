"""Parameter groups: what every trainable parameter of a model is, and how it is to be treated.

The only file of this layer that needs torch alone, so that a plain training loop can use it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from scao_hf.optim.kronecker import KINDS, SIDE_CHOICES

NO_DECAY = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
"""Lower-case name patterns that transformers.Trainer keeps out of weight decay."""

# The wrappers that rename parameters without changing them: DDP, torch.compile, activation checkpointing.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
_HEAD_NAMES = frozenset({"lm_head", "head", "embed_out", "output", "output_projection", "unembed"})
_ADAPTER_TAIL = re.compile(r"\.(?:lora_\w+|base_layer|modules_to_save)(?:\..*)?$")
_SET_BY_GROUPS = frozenset({"params", "param_names", "kind", "lr_scale"})


class _Role(NamedTuple):
    """What one parameter is and how it is treated; parameters of equal role share a group."""

    kind: str
    sides: str
    decays: bool


def parameter_groups(
    model: nn.Module,
    weight_decay: float = 0.01,
    *,
    lr: float | None = None,
    lr_scale: Mapping[str, float] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    no_decay: Sequence[str] = NO_DECAY,
    names: bool = True,
    target_modules: str | Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of `model` into groups for SCAO, PublishedSCAO, SOAP or any torch optimizer.

    Every group carries `kind`, `weight_decay` and `lr_scale`, `lr` where one was given, and `sides` where a name tells
    more than the kind; "auto" below means that the optimizer decides (embeddings and heads take AdamW in SCAO and a
    basis of their columns in SOAP; a vector takes AdamW unless SOAP is told otherwise):

        kind        what it is                                                   sides
        matrix      any other weight of two or more dimensions                   auto
        embedding   the weight of an nn.Embedding, (vocabulary, d)               auto
        head        the output embedding, (vocabulary, d), unless tied           auto
        lora_a      LoRA's first factor, (r, d_in)                               auto
                    of an embedding, (r, vocabulary)                             left
        lora_b      LoRA's second factor, (d_out, r)                             auto
                    of an embedding, (d, r)                                      both
                    of a head, (vocabulary, r)                                   right
        vector      one dimension, or one that is not 1 (biases, norms, DoRA)    auto

    Each parameter appears once, a tied weight as the embedding it is. Groups whose learning rate is not scaled come
    first, so that the rate a scheduler or a Trainer reports for group 0 is the one that was asked for; within that the
    order is that of `KINDS` and, inside a group, that of `model.named_parameters()`.

    Args:
        model: any module, wrapped or not (DDP, torch.compile, PEFT).
        weight_decay: for parameters that decay; vectors and names matching `no_decay` get 0.
        lr: the base learning rate; without it the groups leave the rate to the optimizer.
        lr_scale: factor on `lr` per kind, > 0, such as `{"embedding": 0.5, "lora_b": 4.0}`; needs `lr`.
        options: optimizer arguments per kind, such as `{"head": {"betas": (0.9, 0.999), "sides": "none"}}`. They have
            the last word, `weight_decay` and `sides` included.
        no_decay: regular expressions searched in the lower-case name; the default is transformers.Trainer's rule.
        names: give `(name, parameter)` pairs, which torch keeps as `param_names` in the group.
        target_modules: modules whose parameters are preconditioned: a list of substrings or regular expressions, one
            regular expression for the whole module name, or "all-linear". All others get sides "none".

    Returns:
        A list of new dictionaries; the parameters themselves are shared with the model.

    Raises:
        ValueError: no trainable parameter, an unknown kind, a target that matches nothing, a misplaced option.
        TypeError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}")
    scales = _checked_scales(lr_scale or {}, lr)
    overrides = _checked_options(options or {})

    named = [(_WRAPPERS.sub("", name), p) for name, p in unwrap(model).named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("model has no trainable parameter: unfreeze some, or add an adapter, before building groups")
    roles = _roles(unwrap(model), named, no_decay, target_modules)

    members: dict[_Role, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        members.setdefault(roles[id(parameter)], []).append((name, parameter))
    groups = [
        _group(role, members[role], weight_decay, lr, scales.get(role.kind, 1.0), overrides.get(role.kind, {}), names)
        for role in sorted(members, key=lambda role: (scales.get(role.kind, 1.0) != 1.0, _rank(role)))
    ]
    require_each_once(groups, [parameter for _, parameter in named])
    return groups


def require_each_once(groups: Iterable[Mapping[str, Any]], parameters: Sequence[Tensor]) -> None:
    """Raise ValueError unless `groups` hold every one of `parameters` exactly once, and nothing else."""
    seen: set[int] = set()
    expected = {id(parameter) for parameter in parameters}
    for entry in (entry for group in groups for entry in group["params"]):
        name, parameter = entry if isinstance(entry, tuple) else (f"of shape {tuple(entry.shape)}", entry)
        if id(parameter) in seen:
            raise ValueError(f"parameter {name} is in the groups twice: each belongs to one group")
        if id(parameter) not in expected:
            raise ValueError(f"parameter {name} is in a group and is not a trainable parameter of the model")
        seen.add(id(parameter))
    if missing := len(expected - seen):
        raise ValueError(f"{missing} trainable parameters of the model are in no group and would not be trained")


def unwrap(model: nn.Module) -> nn.Module:
    """The module below DistributedDataParallel and DataParallel, whose own names all start with `module.`."""
    while isinstance(model, (DistributedDataParallel, DataParallel)):
        model = model.module
    return model


def _group(
    role: _Role,
    members: list[tuple[str, nn.Parameter]],
    weight_decay: float,
    lr: float | None,
    scale: float,
    overrides: Mapping[str, Any],
    names: bool,
) -> dict[str, Any]:
    group = {
        "params": members if names else [parameter for _, parameter in members],
        "kind": role.kind,
        "weight_decay": weight_decay if role.decays else 0.0,
        "lr_scale": scale,
    }
    # A group that said "auto" would silence the `sides` given to the constructor.
    sides = {} if role.sides == "auto" else {"sides": role.sides}
    rate = {} if lr is None else {"lr": lr * scale}
    return {**group, **sides, **rate, **overrides}


def _rank(role: _Role) -> tuple[int, int, bool]:
    return KINDS.index(role.kind), SIDE_CHOICES.index(role.sides), not role.decays


# What each parameter is


def _roles(
    model: nn.Module,
    named: Sequence[tuple[str, nn.Parameter]],
    no_decay: Sequence[str],
    target_modules: str | Sequence[str] | None,
) -> dict[int, _Role]:
    """Map `id(parameter)` to its role, once for each of the distinct parameters in `named`."""
    embeddings = {id(p) for module in _embeddings(model) for p in module.parameters(recurse=False)}
    heads = _head_modules(model)
    head_parameters = {id(p) for module in heads.values() for p in module.parameters()}
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters(recurse=False)}
    forbidden = [re.compile(pattern) for pattern in no_decay]
    targeted = _target_rule(model, target_modules, heads)

    roles: dict[int, _Role] = {}
    for name, parameter in named:
        kind = _kind(name, parameter, id(parameter) in embeddings, id(parameter) in head_parameters)
        sides = _sides(name, kind, _inside(name, heads)) if targeted(name) else "none"
        decays = kind != "vector" and id(parameter) not in norms and not any(f.search(name.lower()) for f in forbidden)
        roles[id(parameter)] = _Role(kind, sides, decays)
    return roles


def _kind(name: str, parameter: Tensor, in_embedding: bool, in_head: bool) -> str:
    if _is_vector(parameter):
        return "vector"
    parts = set(name.split("."))
    if parts & {"lora_A", "lora_embedding_A"}:
        return "lora_a"
    if parts & {"lora_B", "lora_embedding_B"}:
        return "lora_b"
    if in_embedding or "trainable_tokens_delta" in parts:
        return "embedding"
    return "head" if in_head else "matrix"


def _is_vector(parameter: Tensor) -> bool:
    # DoRA's magnitudes of a convolution are (1, d, 1, 1) and a class token is (1, 1, d): one dimension either way.
    return parameter.ndim < 2 or (parameter.ndim > 2 and sum(size != 1 for size in parameter.shape) < 2)


def _sides(name: str, kind: str, in_head: bool) -> str:
    parts = name.split(".")
    if "lora_embedding_A" in parts:
        return "left"
    if "lora_embedding_B" in parts:
        return "both"
    return "right" if kind == "lora_b" and in_head else "auto"


def _embeddings(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag)))


def _head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that map to the vocabulary, by name: what the model declares, else what is named and shaped so."""
    declared = _declared_head(model)
    vocabularies = {getattr(module, "num_embeddings", None) for module in _embeddings(model)}
    return {
        _WRAPPERS.sub("", name): module
        for name, module in model.named_modules()
        if module is declared or (declared is None and _looks_like_head(name, module, vocabularies))
    }


def _declared_head(model: nn.Module) -> nn.Module | None:
    getter: Callable[[], Any] | None = getattr(model, "get_output_embeddings", None)
    if getter is None:
        return None
    try:
        return getter()
    except NotImplementedError:
        # transformers' base models declare the method and leave it to the ones that have a head.
        return None


def _looks_like_head(name: str, module: nn.Module, vocabularies: set[int | None]) -> bool:
    return name.rpartition(".")[2] in _HEAD_NAMES and getattr(module, "out_features", 0) in vocabularies


# Which modules are preconditioned


def _target_rule(
    model: nn.Module, targets: str | Sequence[str] | None, heads: Mapping[str, nn.Module]
) -> Callable[[str], bool]:
    """A function from a parameter's name to whether `targets` names the module it belongs to."""
    if targets is None:
        return lambda name: True
    modules = {_WRAPPERS.sub("", name): module for name, module in model.named_modules()}
    linear = {name for name, module in modules.items() if _is_linear(module) and not _inside(name, heads)}
    if isinstance(targets, str) and targets.replace("_", "-") == "all-linear":
        return lambda name: name.rpartition(".")[0] in linear
    if not any(_matches(_WRAPPERS.sub("", name), targets) for name, _ in model.named_parameters()):
        examples = ", ".join(sorted(linear)[:5]) or "no linear module"
        raise ValueError(f"target_modules={targets!r} matches no module of the model, which has {examples}")
    return lambda name: _matches(name, targets)


def _inside(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _matches(name: str, targets: str | Sequence[str]) -> bool:
    """transformers' rule for `optim_target_modules`, on the names of the parameter and of its module."""
    module = _ADAPTER_TAIL.sub("", name.rpartition(".")[0])
    candidates = {c for full in (name, module) for c in (full, full.removeprefix("base_model.model."))}
    if isinstance(targets, str):
        return any(re.fullmatch(targets, candidate) for candidate in candidates)
    return any(target in module or any(re.fullmatch(target, c) for c in candidates) for target in targets)


def _is_linear(module: nn.Module) -> bool:
    # GPT-2's Conv1D is a linear layer of transformers', which this file does without.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


# What the caller asked for


def _checked_scales(scales: Mapping[str, float], lr: float | None) -> dict[str, float]:
    for kind, scale in scales.items():
        _check_kind(kind, "lr_scale")
        if not scale > 0:
            raise ValueError(f"lr_scale[{kind!r}] must be positive, got {scale}; freeze parameters to leave them out")
    if scales and lr is None:
        raise ValueError("lr_scale multiplies lr: give lr as well")
    return dict(scales)


def _checked_options(options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    for kind, chosen in options.items():
        _check_kind(kind, "options")
        if taken := sorted(_SET_BY_GROUPS & chosen.keys()):
            raise ValueError(f"options[{kind!r}] must not set {', '.join(taken)}: parameter_groups does")
        if "lr" in chosen:
            raise ValueError(f"options[{kind!r}] must not set lr: use lr_scale={{{kind!r}: factor}}")
        if chosen.get("sides", "auto") not in SIDE_CHOICES:
            choices = ", ".join(SIDE_CHOICES)
            raise ValueError(f"options[{kind!r}]['sides'] must be one of {choices}, got {chosen['sides']!r}")
    return {kind: dict(chosen) for kind, chosen in options.items()}


def _check_kind(kind: str, argument: str) -> None:
    if kind in KINDS:
        return
    near = difflib.get_close_matches(kind, KINDS, n=1)
    hint = f": did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{argument} has the unknown kind {kind!r}{hint} The kinds are {', '.join(KINDS)}")
