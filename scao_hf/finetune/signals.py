"""Ctrl-C and SIGTERM as a wish to stop after the step in hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where there is no step to finish."""


@contextmanager
def terminating() -> Iterator[None]:
    """Within it, SIGTERM raises `Terminated` instead of ending the process with nothing put in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def name_of(interrupt: KeyboardInterrupt) -> str:
    """The signal behind an exception."""
    return "SIGTERM" if isinstance(interrupt, Terminated) else "SIGINT"


class StopRequest:
    """Whether a signal asked the run to stop, and which."""

    def __init__(self, on_request: Callable[[str], None]) -> None:
        self.signal_name: str | None = None
        self._on_request = on_request

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_name is not None:  # Asked a second time: stop at once.
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        self._on_request(self.signal_name)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over; outside the main thread, where Python cannot, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class StopCallback(TrainerCallback):
    """Ends training, with a checkpoint, after the step during which a stop was requested."""

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._requested(args):
            control.should_save = True
            args.save_only_model = False  # a checkpoint of weights alone could not be resumed from
            control.should_training_stop = True

    def _requested(self, args: Any) -> bool:
        """Whether any process of the run was asked; all of them must stop after the same step."""
        asked = self.request.signal_name is not None
        if args.world_size == 1:
            return asked
        flag = torch.tensor(int(asked), device=args.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        if flag and not asked:  # Another process was; which signal it got is not worth a message.
            self.request.signal_name = signal.SIGTERM.name
        return bool(flag)
