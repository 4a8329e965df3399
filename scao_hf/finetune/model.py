"""Model and tokenizer of a recipe, from a directory, the hub or this package."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from scao_hf.finetune import embedded
from scao_hf.finetune.config import ModelSection, Recipe
from scao_hf.finetune.data import Template
from scao_hf.finetune.errors import FinetuneError
from scao_hf.finetune.schema import closest
from scao_hf.finetune.sources import EMBEDDED, looks_like_path
from scao_hf.finetune.templates import is_marked, template_text, training_template, with_template

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
AnyModule = TypeVar("AnyModule", bound=torch.nn.Module)
TOKENIZER_FILES = ("tokenizer*", "*.model", "vocab*", "tekken.json")


def model_reference(section: ModelSection) -> str:
    """What to give to `from_pretrained`: a directory or a hub id.

    Raises:
        FinetuneError: model.not-found, model.is-adapter, model.no-config, model.unreadable for a directory that will
            not do.
    """
    assert section.model_name_or_path is not None
    name = section.model_name_or_path
    if name in (embedded.MODEL_NAME, EMBEDDED + embedded.MODEL_NAME) and not Path(name).is_dir():
        return str(embedded.model_directory())
    path = Path(os.path.expandvars(name)).expanduser()
    if path.is_dir():
        try:
            _check_directory(path)
        except PermissionError as error:
            raise FinetuneError("model.unreadable", f"no permission to read {path}", "change its mode") from error
        return str(path)
    if path.is_file():
        raise FinetuneError("model.not-found", f"{name} is a file, not a model's directory", "give its directory")
    if looks_like_path(name):
        raise _no_directory(path)
    return name


def _check_directory(path: Path) -> None:
    if (path / ADAPTER_CONFIG).is_file() and not (path / CONFIG).is_file():
        import json

        base = json.loads((path / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
        message = f"{path} is a LoRA adapter ({ADAPTER_CONFIG}), not a model"
        raise FinetuneError("model.is-adapter", message, f"its base is model.model_name_or_path={base}")
    if not (path / CONFIG).is_file():
        inside = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        message = f"{path} is not a model's directory: it has no {CONFIG}"
        raise FinetuneError("model.no-config", message, f"it holds {inside}")


def _no_directory(path: Path) -> FinetuneError:
    folder = path.parent
    siblings = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    near = closest(path.name, siblings)
    if near is not None:
        hint = f"did you mean {folder / near}?"
    elif siblings:
        hint = f"directories beside it: {', '.join(siblings[:8])}"
    else:
        hint = f"the current directory is {Path.cwd()}"
    return FinetuneError("model.not-found", f"no such directory: {path}", hint)


def load_config(section: ModelSection, reference: str) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        FinetuneError: kind "model": not-found, gated, offline, revision, remote-code, unknown-architecture.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(reference, **_hub_arguments(section))
    except (OSError, ValueError) as error:
        raise _load_error(section, error) from error


def load_tokenizer(section: ModelSection, reference: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the right.

    Raises:
        FinetuneError: model.no-tokenizer, model.no-pad-token.
    """
    from transformers import AutoTokenizer

    folder = Path(reference)
    if folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        message = f"{reference} holds no tokenizer"
        raise FinetuneError("model.no-tokenizer", message, "save the tokenizer beside the model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(reference, **_hub_arguments(section))
    except (OSError, ValueError, KeyError) as error:
        message = f"no tokenizer can be loaded from {section.model_name_or_path}: {_first_line(error)}"
        raise FinetuneError("model.no-tokenizer", message, "save the tokenizer beside the model") from error
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        message = f"the tokenizer of {section.model_name_or_path} has neither a padding nor an end-of-text token"
        raise FinetuneError("model.no-pad-token", message, "set pad_token or eos_token in its tokenizer_config.json")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def chat_template(tokenizer: PreTrainedTokenizerBase, template_path: str | None) -> Template:
    """What the chat template can do, with `training.chat_template_path` applied if there is one.

    Raises:
        FinetuneError: model.chat-template if the path leads nowhere.
    """
    adopted = with_template(tokenizer, template_path)
    text = template_text(adopted)
    if not text:
        return Template(exists=False, masks_assistant=False)
    return Template(exists=True, masks_assistant=is_marked(text) or training_template(adopted) is not None)


def fingerprint(config: PretrainedConfig, reference: str) -> str:
    """What tells one state of a model from another: the hub's commit, or the files of a directory with their times."""
    if not Path(reference).is_dir():
        return f"commit:{getattr(config, '_commit_hash', None)}"
    files = sorted(file for file in Path(reference).iterdir() if file.is_file())
    listed = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"files:{sha256(repr(listed).encode()).hexdigest()}"


def check_lengths(config: PretrainedConfig, max_length: int | None) -> None:
    """Refuse rows longer than the model's context.

    Raises:
        FinetuneError: model.context.
    """
    context = context_length(config)
    if context is not None and max_length is not None and max_length > context:
        message = f"data.max_length is {max_length}, and the model's context is {context} tokens"
        raise FinetuneError("model.context", message, f"data.max_length={context}")


def context_length(config: PretrainedConfig) -> int | None:
    """Positions that the model can tell apart; None if its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def device_of(use_cpu: bool) -> torch.device:
    """Where training runs: the accelerator of this process, or the CPU."""
    if use_cpu or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))


def weights_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of the model's weights.

    "auto" is bfloat16 under an adapter where the device computes in it. Full fine-tuning keeps float32 weights: the
    steps of a fine-tuning rate are smaller than bfloat16's spacing, and would be rounded away.
    """
    if recipe.model.dtype != "auto":
        return getattr(torch, recipe.model.dtype)
    return torch.bfloat16 if recipe.lora is not None and computes_in_bfloat16(device) else torch.float32


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is fast on the device; on CPUs it is only emulated, or slow."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def load_model(recipe: Recipe, reference: str, config: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    """The model, on the CPU unless it is quantized, with trained or with random weights.

    Raises:
        FinetuneError: model.no-weights, model.damaged, model.not-causal, extra.missing.
    """
    from transformers import AutoModelForCausalLM, set_seed

    section, dtype = recipe.model, weights_dtype(recipe, device)
    arguments: dict[str, Any] = {"dtype": dtype, **_implementation(section)}
    try:
        if section.from_scratch:
            set_seed(recipe.seed)
            remote = {"trust_remote_code": section.trust_remote_code}
            return AutoModelForCausalLM.from_config(config, **arguments, **remote)
        if recipe.quantization is not None:
            arguments |= _quantization(recipe.quantization, device, dtype)
        return keep_gradients(AutoModelForCausalLM.from_pretrained(reference, **arguments, **_hub_arguments(section)))
    except ImportError as error:
        raise FinetuneError("extra.missing", _first_line(error), "install the package that is named") from error
    except (OSError, ValueError) as error:
        raise _load_error(section, error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # Its class is not importable under one name in all releases.
            raise
        message = f"the weights of {section.model_name_or_path} cannot be read: {_first_line(error)}"
        raise FinetuneError("model.damaged", message, "download or save them again") from error


def keep_gradients(model: AnyModule) -> AnyModule:
    """The model, whose 4-bit layers stay as they can be trained through.

    On processors with AVX512-BF16 an evaluation makes bitsandbytes (0.50) lay the weights out for a product that has no
    derivative, and the training that follows would lose, without an error, what flows through the frozen layers.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model


def shapes_only(recipe: Recipe, config: PretrainedConfig, device: torch.device) -> PreTrainedModel:
    """The model on the meta device: every shape and dtype of a run on `device`, and no memory.

    Raises:
        FinetuneError: model.not-causal, extra.missing.
    """
    from transformers import AutoModelForCausalLM

    section = recipe.model
    arguments = {"dtype": weights_dtype(recipe, device), "trust_remote_code": section.trust_remote_code}
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, **arguments, **_implementation(section))
    except ImportError as error:
        raise FinetuneError("extra.missing", _first_line(error), "install the package that is named") from error
    except ValueError as error:
        raise _load_error(section, error) from error


def _implementation(section: ModelSection) -> dict[str, Any]:
    return {} if section.attn_implementation is None else {"attn_implementation": section.attn_implementation}


def _quantization(options: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    if importlib.util.find_spec("bitsandbytes") is None:
        message = "the section `quantization` needs bitsandbytes, which is not installed"
        raise FinetuneError("extra.missing", message, "pip install bitsandbytes, or quantization=null")
    # bitsandbytes itself would multiply in float32.
    computed = {"bnb_4bit_compute_dtype": dtype} if options.get("load_in_4bit") else {}
    return {"quantization_config": BitsAndBytesConfig(**{**computed, **options}), "device_map": {"": device}}


def check_token_ids(largest: int, model: PreTrainedModel) -> None:
    """Refuse token ids beyond the embedding, which would fail deep inside a kernel.

    Raises:
        FinetuneError: model.vocabulary.
    """
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    rows = embedding.shape[0]
    if largest >= rows:
        message = f"the tokenizer makes token id {largest}, and the model's embedding has {rows} rows"
        raise FinetuneError("model.vocabulary", message, "use the tokenizer that belongs to the model")


def _hub_arguments(section: ModelSection) -> dict[str, Any]:
    revision = {} if section.revision is None else {"revision": section.revision}
    return {"trust_remote_code": section.trust_remote_code, **revision}


def _load_error(section: ModelSection, error: Exception) -> FinetuneError:
    """Why a model cannot be loaded, from the exceptions behind the one that transformers raised."""
    name, text = section.model_name_or_path, str(error)
    kinds = {type(cause).__name__ for cause in _causes(error)}
    if "GatedRepoError" in kinds or "gated repo" in text:
        hint = f"ask for access at https://huggingface.co/{name}, then `hf auth login`"
        return FinetuneError("model.gated", f"{name} is gated, and this account has no access", hint)
    if "RevisionNotFoundError" in kinds:
        return FinetuneError("model.revision", f"{name} has no revision {section.revision!r}", "set model.revision")
    if "RepositoryNotFoundError" in kinds or "not a valid model identifier" in text:
        message = f"no model {name} on the hub, and no such directory"
        return FinetuneError("model.not-found", message, _cached_hint(name))
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "ConnectTimeout"}:
        message = f"{name} is not in the cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)"
        return FinetuneError("model.offline", message, _cached_hint(name))
    if "trust_remote_code" in text:
        hint = "read it, then set model.trust_remote_code=true"
        return FinetuneError("model.remote-code", f"{name} brings its own code", hint)
    if "AutoModelForCausalLM" in text:
        return FinetuneError("model.not-causal", f"{name} is not a causal language model", "choose a text generator")
    if "no file named" in text or "does not appear to have" in text:
        message = f"{name} has no weights in a known file"
        return FinetuneError("model.no-weights", message, "model.safetensors is missing; model.from_scratch needs none")
    return FinetuneError("model.not-loadable", f"{name} cannot be loaded: {_first_line(error)}", None)


def _causes(error: BaseException | None) -> list[BaseException]:
    causes = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _cached_hint(name: str | None) -> str:
    """Cached models with a name like this one, else all cached ones, else what to do."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cached = sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except CacheNotFound:
        cached = []
    near = closest(name or "", cached)
    if near is not None:
        return f"did you mean {near}?"
    if cached:
        return f"in the cache: {', '.join(cached[:5])}"
    return f"check the name, or use a local directory; `{embedded.MODEL_NAME}` comes with this package"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
