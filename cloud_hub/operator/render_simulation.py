"""What `mooring simulate` shows of its fleet, live and at the end."""

from __future__ import annotations

import sys
import time

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cloud_hub.simulator.counts import Summary
from cloud_hub.simulator.run import Watcher

MOST_ERRORS = 6
QUIET_S = 10.0  # between two words about enrolment, where there is no terminal


class Shown(Watcher):
    """What a run tells: lines of JSON, or on the terminal."""

    def __init__(self, in_json: bool, live: Live | None) -> None:
        self._in_json, self._live = in_json, live
        self._enrolled, self._told_at = 0, time.monotonic()
        self._before: Summary | None = None

    def enrolled(self, more: int) -> None:
        self._enrolled += more
        if self._live is not None:
            self._live.update(f"{self._enrolled} devices enrolled")
        elif time.monotonic() - self._told_at > QUIET_S:
            self._told_at = time.monotonic()
            _note(f"{self._enrolled} devices enrolled")

    def ready(self, devices: int, seconds: float) -> None:
        if self._in_json:
            line("ready", {"devices": devices, "seconds": round(seconds, 3)})
        else:
            _note(f"{devices} devices are there, after {seconds:.1f} s; they connect now")

    def look(self, summary: Summary) -> None:
        if self._in_json:
            line("look", summary)
        elif self._live is not None:
            self._live.update(table(summary, self._before))
        self._before = summary


def line(kind: str, value: object) -> None:
    """One JSON object on standard output: its kind, and under that name the value."""
    sys.stdout.write(msgspec.json.encode({"kind": kind, kind: value}).decode() + "\n")
    sys.stdout.flush()


def _note(text: str) -> None:
    Console(stderr=True, highlight=False).print(text)


def table(now: Summary, before: Summary | None) -> Table:
    """Two columns; with the look `before` also rates."""
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(style="bold")
    shown.add_column()
    shown.add_row("connected", f"{now.connected} of {now.devices}, {now.losses} connections lost")
    shown.add_row("reports", f"{now.reports}{_rate(now, before, 'reports')}")
    shown.add_row("windows", f"{now.windows}{_rate(now, before, 'windows')}, {now.windows_lost} given up")
    shown.add_row("questions", f"{now.questions}{_rate(now, before, 'questions')}")
    shown.add_row("updates", ", ".join([f"{now.updating} under way", *_counted(now.updates)]))
    if now.silent or now.lies:
        shown.add_row("odd ones", ", ".join([f"{now.silent} silent", *_counted(now.lies)]))
    if now.commands:
        shown.add_row("commands", str(now.commands))
    for reason, count in list(now.errors.items())[:MOST_ERRORS]:
        shown.add_row("[red]errors[/]", f"{count} x {reason}")
    used = now.cpu_s / now.seconds if now.seconds else 0.0
    shown.add_row("simulator", f"{now.seconds:.0f} s, {used:.2f} of a core, at worst {now.late_s:.2f} s late")
    return shown


def _counted(counts: dict[str, int]) -> list[str]:
    return [f"{count} {name}" for name, count in counts.items()]


def _rate(now: Summary, before: Summary | None, name: str) -> str:
    if before is None or now.seconds <= before.seconds:
        return ""
    return f", {(getattr(now, name) - getattr(before, name)) / (now.seconds - before.seconds):.0f}/s"
