"""What a simulated fleet counts: the live table, the summary at the end, and what tests and benchmarks look at."""

from __future__ import annotations

from collections import Counter

import msgspec


class Summary(msgspec.Struct, frozen=True):
    """All that was counted, and how long it took. `updates` counts by how they ended, `errors` by reason.

    `reports` were acknowledged by the broker, `windows` by the hub. `late_s` is how far the process was behind its own
    clock at worst: much of it says that the simulator is too slow, not the hub.
    """

    devices: int
    seconds: float
    connected: int
    connects: int
    losses: int
    reports: int
    windows: int
    windows_lost: int
    questions: int
    received_bytes: int
    commands: int
    updating: int
    silent: int
    updates: dict[str, int]
    lies: dict[str, int]
    errors: dict[str, int]
    cpu_s: float
    late_s: float


class Counts:
    """Plain numbers, changed by the devices."""

    def __init__(self) -> None:
        self.connected = self.connects = self.losses = self.connecting = 0
        self.reports_sent = self.reports = self.windows = self.windows_lost = 0
        self.questions = self.received_bytes = self.commands = self.updating = self.silent = 0
        self.updates: Counter[str] = Counter()
        self.lies: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.late_s = 0.0

    def summary(self, devices: int, seconds: float, cpu_s: float) -> Summary:
        return Summary(
            devices=devices,
            seconds=round(seconds, 3),
            connected=self.connected,
            connects=self.connects,
            losses=self.losses,
            reports=self.reports,
            windows=self.windows,
            windows_lost=self.windows_lost,
            questions=self.questions,
            received_bytes=self.received_bytes,
            commands=self.commands,
            updating=self.updating,
            silent=self.silent,
            updates=dict(self.updates),
            lies=dict(self.lies),
            errors=dict(self.errors.most_common(20)),
            cpu_s=round(cpu_s, 3),
            late_s=round(self.late_s, 3),
        )
