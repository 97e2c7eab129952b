"""SIGTERM and Ctrl-C turned into a question asked between two steps."""

import os
import signal

import jax


class Stop:
    """Remember that somebody asked the run to end; a second Ctrl-C ends it at once."""

    def __init__(self):
        self.signal: int | None = None
        self.before = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            # With several processes jax's own handler agrees on SIGTERM among them.
            if number == signal.SIGINT or jax.process_count() == 1:
                self.before[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: object) -> None:
        """Keep the signal and say what comes of it, as a step may take minutes; give a second one its usual effect."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        if number == signal.SIGINT:
            os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")  # `print` may be interrupted by itself
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # the others end after the same step

    def reached(self, step: int) -> bool:
        """Tell whether to save and end after this step; the same answer in every process."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self.signal is not None
