"""Silence of the libraries while a run goes on, so that its observer is the only voice."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = ("transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub", "torch", "bitsandbytes")


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, the libraries print no warnings, log nothing below errors and draw no progress bars."""
    import datasets
    import huggingface_hub
    import transformers

    bars = transformers.utils.logging.is_progress_bar_enabled()
    data_bars = datasets.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()
        hub_bars = huggingface_hub.utils.are_progress_bars_disabled()
        if not hub_bars:
            huggingface_hub.utils.disable_progress_bars()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                transformers.utils.logging.enable_progress_bar()
            if not data_bars:
                datasets.enable_progress_bars()
            if not hub_bars:
                huggingface_hub.utils.enable_progress_bars()
