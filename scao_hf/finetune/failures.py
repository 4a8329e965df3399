"""The few exceptions of the libraries that have an answer, as errors that state it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scao_hf.finetune.errors import FinetuneError, Interrupted

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota that is used up, and a file larger than a limit allows."""
_TORCH_WRITING = ("PytorchStreamWriter failed", "unexpected pos", "iostream error")
"""What torch.save says of a write that failed, whatever the reason."""

_LESS_MEMORY = (
    "halve training.per_device_train_batch_size and double training.gradient_accumulation_steps; then "
    "training.gradient_checkpointing=true, a smaller data.max_length, a section `lora`"
)


@contextmanager
def answers(output_dir: Path) -> Iterator[None]:
    """Turn exceptions of the libraries and of the system that have an answer into errors that state it."""
    try:
        yield
    except FinetuneError:
        raise
    except KeyboardInterrupt as error:
        from scao_hf.finetune.signals import name_of

        raise Interrupted(name_of(error), 0, None) from error
    except Exception as error:
        known = translated(error, output_dir)
        if known is None:
            raise
        raise known from error


def translated(error: BaseException, output_dir: Path) -> FinetuneError | None:
    """What an exception of torch, transformers, TRL or the system means for the user; None for an unknown one."""
    for cause in _chain(error):
        for recognise in (_memory, _disk, _setup):
            known = recognise(cause, output_dir)
            if known is not None:
                return known
    return _missing_package(error)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _memory(error: BaseException, _output_dir: Path) -> FinetuneError | None:
    text = str(error)
    allocator = isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    if isinstance(error, MemoryError) or allocator:
        return FinetuneError("memory.out", f"out of memory: {memory_reason(error)}", _LESS_MEMORY)
    return None


def memory_reason(error: BaseException) -> str:
    """What an allocator said, one line."""
    return str(error).splitlines()[0] if str(error) else "the machine has no more"


def _disk(error: BaseException, output_dir: Path) -> FinetuneError | None:
    text = str(error)
    full = ("No space left on device", "Disk quota exceeded", "File too large")
    if (isinstance(error, OSError) and error.errno in _FULL) or any(words in text for words in full):
        hint = f"free some space, or write elsewhere: training.output_dir; {output_dir} keeps what is complete"
        return FinetuneError("disk.full", f"no space left on the device that holds {output_dir}", hint)
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        place = Path(error.filename or output_dir)
        if place.absolute().is_relative_to(output_dir.absolute()):
            return FinetuneError("disk.permission", f"no permission to write {place}", "set training.output_dir")
        return FinetuneError("disk.permission", f"no permission for {place}", "change its mode")
    if isinstance(error, RuntimeError) and any(words in text for words in _TORCH_WRITING):
        hint = f"check the disk and the space on it; {output_dir} keeps what is complete"
        return FinetuneError("disk.write", f"cannot write {output_dir}: {text.splitlines()[0]}", hint)
    return None


def _setup(error: BaseException, _output_dir: Path) -> FinetuneError | None:
    from scao_hf.hf.backends import UnsupportedBackendError

    text = str(error)
    if isinstance(error, UnsupportedBackendError):
        return FinetuneError(
            "config.sharding", text, "leave it out: --gpus N trains on several GPUs; or training.optim=adamw_torch"
        )
    if "nn.DataParallel" in text:
        message = "several GPUs are visible to one process"
        return FinetuneError("config.several-gpus", message, "make one visible: CUDA_VISIBLE_DEVICES=0")
    if isinstance(error, ValueError) and ("arget modules" in text or "target_modules" in text):
        return FinetuneError("model.target-modules", text.splitlines()[0], "set lora.target_modules=all-linear")
    if "no assistant tokens" in text:
        message = "all labels of a row are masked: the chat template marks nothing that the assistant says"
        return FinetuneError("data.all-masked", message, "data.loss_on=completion, or another chat template")
    if type(error).__module__.startswith("jinja2"):  # A row of a stream; others are tried before the first step.
        hint = "change the row, or give another template: training.chat_template_path=FILE.jinja"
        return FinetuneError("data.chat-template", f"the chat template cannot write a chat: {text}", hint)
    return None


def _missing_package(error: BaseException | None) -> FinetuneError | None:
    # Only what was raised, and what it was raised from: libraries try optional imports all the time, and a bug met
    # while they handle one has nothing to do with it.
    while error is not None:
        text = str(error).strip()
        if isinstance(error, ImportError) and not text.startswith("cannot import name"):
            return FinetuneError("extra.missing", text.partition("\n")[0], "install what is named")
        error = error.__cause__
    return None
