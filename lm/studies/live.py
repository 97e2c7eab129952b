"""The screen of a sweep: one live table on a terminal, a line for every run that ends elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from lm.console import duration, number, printable, table
from lm.sizes import readable
from lm.studies.runs import last_metrics

if TYPE_CHECKING:
    from lm.studies.engine import Shown

EVERY = 1.0  # seconds between two looks at the logs of the runs
ROWS = 30  # of the table


class Live:
    """Shows the runs of this process, with step, loss and remaining time, and the counts of all states."""

    def __init__(self) -> None:
        self.looked = 0.0
        self.table: Any = None
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            from rich.live import Live as Screen

            self.table = Screen(auto_refresh=False)
            self.table.start()

    def say(self, line: str) -> None:
        """Print a line that stays, above the table."""
        if self.table:
            self.table.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        else:
            print(printable(line), flush=True)

    def show(self, sweep: Shown) -> None:
        """Redraw the table."""
        if not self.table or time.monotonic() - self.looked < EVERY:
            return
        self.looked = time.monotonic()
        from rich.table import Table

        screen = Table(title=self.title(sweep), title_justify="left")
        for name in ("arm", "seed", "stage", "step", "loss", "left"):
            screen.add_column(name, justify="left" if name in ("arm", "stage") else "right")
        for one in sweep.started[:ROWS]:
            line = last_metrics(sweep.workdir(one.run))
            step = line.get("step", 0)
            left = max(0, one.run.config.steps - step) * seconds_a_step(one.run, line)
            loss = line.get("train/loss")
            shown = number(loss) if isinstance(loss, float) else ""
            cells = (one.run.arm, str(one.run.seed), one.run.stage, f"{step}/{one.run.config.steps}", shown, duration(left))
            screen.add_row(*map(printable, cells))
        self.table.update(screen, refresh=True)

    def title(self, sweep: Shown) -> str:
        """Count the states and estimate the remaining time."""
        count = Counter(sweep.states.values())
        words = [f"{count[state]} {state}" for state in ("done", "running", "failed", "missing") if count[state]]
        return f"{sweep.study}: {', '.join(words)} of {len(sweep.runs)} runs, {duration(remaining(sweep))} left"

    def close(self) -> None:
        """Restore the terminal."""
        if self.table:
            self.table.stop()
            self.table = None


def seconds_a_step(run: Any, line: dict[str, Any]) -> float:
    """Return the seconds of a step as the run logs it, before its first log as it was measured."""
    rate = line.get("train/tokens_per_second")
    return run.measure.step_tokens / rate if rate else run.measure.step_seconds


def remaining(sweep: Shown) -> float:
    """Estimate the seconds until all known runs are done."""
    seconds = 0.0
    for run in sweep.runs:
        if sweep.states.get(run.hash) in ("missing", "running"):
            line = last_metrics(sweep.workdir(run)) if sweep.states[run.hash] == "running" else {}
            steps = run.config.steps - line.get("step", 0)
            seconds += steps * seconds_a_step(run, line) + run.measure.start_seconds * (not line)
    return seconds / len(sweep.slots)


def table_of(plan: dict[str, Any]) -> list[str]:
    """Format a plan: a row an arm, then the sums."""
    rows = [
        (
            name,
            f"{arm['done']}/{arm['runs']}",
            f"{arm['params'] / 1e6:,.2f} M",
            f"{arm['steps']:,}",
            f"{arm['tokens']:.3g}",
            f"{arm['flops']:.3g}",
            duration(3600 * arm["hours"]),
        )
        for name, arm in plan["arms"].items()
    ]
    header = ("arm", "runs done", "parameters", "steps", "tokens", "FLOPs", "time of all its runs")
    lines = table(rows, header).splitlines()
    lines.append("")
    lines.append(
        f"{plan['runs']} runs, {plan['done']} done; the others take about {duration(3600 * plan['hours'])} in {plan['slots']} "
        f"slot{'s' * (plan['slots'] != 1)} and {readable(plan['disk_bytes'])} of disk"
    )
    if plan["seeds"] > 1:
        lines.append(
            f"{plan['seeds']} seeds find a difference of {plan['detectable_sd']:.2f} standard deviations of paired differences"
        )
    else:
        lines.append("one seed finds no difference: nothing says how much seeds differ")
    return lines
