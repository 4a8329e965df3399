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
    """Whether a signal asked the run to stop, and which; the processes of a run answer together.

    Args:
        on_request: told the name of the signal when it comes.
        world_size: processes of the run.
    """

    def __init__(self, on_request: Callable[[str], None], world_size: int = 1) -> None:
        self.world_size = world_size
        self._on_request = on_request
        self._asked: signal.Signals | None = None

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._asked is not None:  # Asked a second time: stop at once.
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        self._asked = signal.Signals(number)
        self._on_request(self._asked.name)

    def agreed(self, device: torch.device) -> str | None:
        """The signal that any process got, the same in all of them; every process must ask at the same time."""
        if self.world_size == 1:
            return None if self._asked is None else self._asked.name
        number = torch.tensor(0 if self._asked is None else self._asked.value, device=device)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        return signal.Signals(int(number)).name if number else None

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
        if self.request.agreed(args.device) is not None:
            control.should_save = True
            args.save_only_model = False  # a checkpoint of weights alone could not be resumed from
            control.should_training_stop = True
