"""Two devices with one key: what gives them away in what they report. Pure; called by `devices`.

Each life of an agent has a name of its own, and a device has one life at a time: a name that comes back after another
has been heard is a second device. So is a report of another life that counts from further back, unless it is an old
one that somebody repeats.
"""

from __future__ import annotations

from collections.abc import Sequence

from modules.messages import DeviceReport

MAX_BOOTS = 8
MAX_BOOT = 64
REPLAY_S = 60.0


def suspicion(boots: Sequence[str], last: DeviceReport | None, report: DeviceReport) -> str:
    """Why `report` gives rise to it, in words; empty when it does not. `boots` are known lives, the newest last."""
    boot = report.boot[:MAX_BOOT]
    if not boot or last is None or not last.boot or boot == last.boot[:MAX_BOOT]:
        return ""
    fresh = report.at >= last.at - REPLAY_S
    if boot in boots and report.counter > last.counter:
        return f"two lives of the agent take turns: {boot[:16]} spoke again after {last.boot[:16]}"
    if report.counter <= last.counter and fresh:
        return (
            f"life {boot[:16]} of the agent counts {report.counter} after life {last.boot[:16]} counted {last.counter}"
        )
    return ""


def remembered(boots: Sequence[str], report: DeviceReport) -> list[str]:
    """`boots` with the report's own at the end; the oldest go."""
    boot = report.boot[:MAX_BOOT]
    if not boot:
        return list(boots)
    return [*(known for known in boots if known != boot), boot][-MAX_BOOTS:]
