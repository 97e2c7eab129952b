"""The figures of a plan as tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm.console import table
from lm.planning.hardware import GIB
from lm.planning.search import named
from lm.sizes import readable


def gib(count: float | None) -> str:
    return "unknown" if count is None else f"{count / GIB:.3f} GiB"


def report(found: Mapping[str, Any]) -> str:
    """Format the figures of `lm.planning.step.measure` or `sized`."""
    rows = [
        ("devices", f"{found['devices']} x {found['device_kind']}"),
        ("mesh", " x ".join(f"{n} {a}" for a, n in found["mesh"].items()) or "1"),
        ("parameters", f"{found['params']:,}"),
    ]
    if pipeline := found.get("pipeline"):
        idle = f"{100 * pipeline['bubble']:.0f}% of its ticks compute nothing of use (the bubble; within the figures below)"
        rows.append(("pipeline", f"{pipeline['micro_batches']} micro-batches through {pipeline['stages']} stages, {idle}"))
    if "fits" in found:
        rows += [(f"{name} a device", gib(found[f"{name}_bytes"])) for name in ("arguments", "temporaries", "peak")]
        rows.append(("fits", verdict(found)))
    rows.append(("operations a step", f"{found['model_flops']:.3e} FLOP (formula of lm.models.flops)"))
    if compiled := found.get("compiled_flops"):
        times = f"{compiled / found['model_flops']:.2f} x"
        rows.append(("compiled", f"{compiled:.3e} FLOP of matrix products, all loops and devices ({times} the formula)"))
        rows.append(("memory traffic", f"{readable(found['bytes_accessed'])} a device and step"))
        rows += [(kind, collective(one)) for kind, one in found["collectives"].items()] or [("collectives", "none")]
    if seconds := found.get("step_seconds_at_peak"):
        hours = seconds * found["steps"] / 3600
        rows.append(("time at the device's peak", f"{seconds:.3g} s a step, {hours:,.3g} h for {found['steps']:,} steps"))
    if seconds := found.get("step_seconds_estimate"):
        parts = ", ".join(f"{name} {found['roofline'][name]:.3g}" for name in ("products", "memory", "network"))
        rows.append(("roofline", f"{seconds:.3g} s a step ({parts}), MFU at most {100 * found['mfu_estimate']:.0f}%"))
    text = table(rows, ("quantity", "value"))
    if seconds:
        text += f"\n\nThe roofline is {found['roofline']['assumptions']}."
    return text


def verdict(found: Mapping[str, Any]) -> str:
    """Return whether a step fits and by how much."""
    peak, hbm = found["peak_bytes"], found["hbm_bytes"]
    if peak is None or hbm is None:
        return "yes" if found["fits"] else "no"
    return f"yes, {gib(hbm - peak)} of {gib(hbm)} free" if found["fits"] else f"no, {gib(peak - hbm)} more than its {gib(hbm)}"


def collective(one: Mapping[str, Any]) -> str:
    """Format a kind of collective: executions and bytes a step, those inside loops, by mesh axes."""
    axes = ", ".join(f"{axis}: {part['count']}, {readable(part['bytes'])}" for axis, part in one["axes"].items())
    return f"{one['count']} a step, {readable(one['bytes'])}; {one['in_loops']['count']} of them in loops; over {axes}"


def ranking(rows: Sequence[Mapping[str, Any]], most: int = 20) -> str:
    """Format the first rows of a search; seconds of candidates that were not compiled are bounds by arithmetic."""

    def line(place: int, row: Mapping[str, Any]) -> tuple[str, ...]:
        peak = row.get("peak_bytes") if row["compiled"] else row["bytes_at_least"]
        memory = "unknown" if peak is None else gib(peak) if row["compiled"] else f"over {gib(peak)}"
        seconds = row["step_seconds_estimate"]
        how = "arithmetic" if not row["compiled"] else "compiled" if row.get("fits") else "does not fit"
        how = "copies whole arrays" if row.get("warnings") else "not compilable" if "error" in row else how
        return str(place), named(row), memory, "-" if seconds is None else f"{seconds:.4g}", str(row["limit"] or "-"), how

    header = ("", "candidate", "peak a device", "seconds a step, at least", "bound by", "figures")
    more = f"\n... and {len(rows) - most} more in --output" if len(rows) > most else ""
    return table([line(place, row) for place, row in enumerate(rows[:most], 1)], header) + more
