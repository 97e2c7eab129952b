"""SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C as a flag that the loop polls between two steps."""

import os
import signal
from typing import Any

import jax


class Stop:
    """Records a request to end the run; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            # With several processes jax's own handler agrees on SIGTERM among them.
            if number != signal.SIGTERM or jax.process_count() == 1:
                self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: object) -> None:
        """Record the signal; training stops after the current step. A Ctrl-C after it raises KeyboardInterrupt."""
        if self.signal is not None:
            if number != signal.SIGINT:
                return  # SLURM sends it twice, to the processes of a job and by srun: the save must not be lost to that
            raise KeyboardInterrupt
        self.signal = number
        if number == signal.SIGINT:
            os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")  # not `print`, which is not reentrant
        if number != signal.SIGTERM and jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # the others end after the same step

    def reached(self, step: int) -> bool:
        """Return whether to save and end after this step; all processes agree."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            # One process is told of a preemption first; all must end at one step, as a save is a collective.
            return multihost_utils.reached_preemption_sync_point(step)
        return self.signal is not None
