"""How a device is, beside what it runs: room, load, heat and the way to the hub. Part of its signed report.

Gathered by `agent.probe.vitals` and `agent.quality`; kept by the hub in `inventory`. Every value is of the moment when
the report was made, and none of them is a reason for a report.
"""

from __future__ import annotations

import msgspec


class LinkQuality(msgspec.Struct, frozen=True, omit_defaults=True):
    """Since the agent's start: connections after the first, and bytes of messages to the hub and from it.

    `rtt_ms` is the median time in which the broker has acknowledged the last messages, 0 where there were none.
    """

    reconnects: int = 0
    rtt_ms: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0


class Vitals(msgspec.Struct, frozen=True, omit_defaults=True):
    """None and zero are unknown. `disk_mib` is the file system of the agent's state, `disk_free_mib` what an agent
    that is not root may still write there. `memory_free_mib` is what can be had without swapping. `load` is the mean
    number of running tasks in the last minute, over the number of cores. `temperature_c` is the hottest sensor.
    """

    uptime_s: float = 0.0
    disk_mib: int = 0
    disk_free_mib: int | None = None
    memory_free_mib: int | None = None
    load: float | None = None
    temperature_c: float | None = None
    link: LinkQuality = LinkQuality()
