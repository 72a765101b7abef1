"""How warm the machine is, what holds it back, and what it runs on. Called by the doctor and `agent.runtimes.heat`.

Sources: kernel documentation (driver-api/thermal/sysfs-api, admin-guide/pm/cpufreq, sysfs-class-power); Raspberry Pi
documentation of get_throttled; x86 thermal_throttle in the kernel's ABI documentation.
"""

from __future__ import annotations

import re

import msgspec

from agent.probe.tree import Tree

_PI_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_PI_NOW = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
_PI_BEFORE = 16  # the same bits, shifted: since the last start
# What a sensor may say; more or less is one that is not connected.
_COLDEST_C, _HOTTEST_C = -60.0, 200.0


class Zone(msgspec.Struct, frozen=True):
    """One sensor. `limit_c` is where its kernel or its firmware starts to hold the machine back, 0 where unknown."""

    name: str
    celsius: float
    limit_c: float = 0.0


class Heat(msgspec.Struct, frozen=True):
    """`throttled` says what holds the machine back now, `earlier` what has since it was started. `battery` is percent
    of charge while it runs on one, -1 else.
    """

    zones: tuple[Zone, ...] = ()
    throttled: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()
    battery: int = -1

    @property
    def hottest_c(self) -> float | None:
        return max((zone.celsius for zone in self.zones), default=None)


def heat(tree: Tree) -> Heat:
    now, before = _pi(tree)
    return Heat(zones(tree), (*now, *_cooling(tree), *_capped(tree)), (*before, *_intel(tree)), _battery(tree))


def zones(tree: Tree) -> tuple[Zone, ...]:
    """Those that can be read: a zone whose part is powered off answers with an error."""
    found = []
    base = "sys/class/thermal"
    for name in tree.names(base):
        if not re.fullmatch(r"thermal_zone\d+", name):
            continue
        milli = tree.number(f"{base}/{name}/temp")
        if milli is not None and _COLDEST_C <= milli / 1000 <= _HOTTEST_C:
            kind = tree.text(f"{base}/{name}/type") or name
            found.append(Zone(kind, milli / 1000, _limit(tree, f"{base}/{name}")))
    return tuple(found)


def _limit(tree: Tree, zone: str) -> float:
    kinds = [name for name in tree.names(zone) if re.fullmatch(r"trip_point_\d+_type", name)]
    holding = [name for name in kinds if tree.text(f"{zone}/{name}") in ("passive", "hot")]
    trips = [tree.number(f"{zone}/{name.removesuffix('type')}temp") or 0 for name in holding]
    return min((trip / 1000 for trip in trips if trip > 0), default=0.0)


def _pi(tree: Tree) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The firmware's bits. The node gives hexadecimal digits without their 0x."""
    try:
        bits = int(tree.text(_PI_FIRMWARE) or "0", 16)
    except ValueError:
        return (), ()
    now = tuple(word for bit, word in _PI_NOW.items() if bits >> bit & 1)
    return now, tuple(word for bit, word in _PI_NOW.items() if bits >> (bit + _PI_BEFORE) & 1)


def _cooling(tree: Tree) -> tuple[str, ...]:
    """Processors that the kernel's thermal governor has slowed. Fans do no harm."""
    base = "sys/class/thermal"
    names = [name for name in tree.names(base) if name.startswith("cooling_device")]
    slowed = [name for name in names if (tree.number(f"{base}/{name}/cur_state") or 0) > 0]
    kinds = {tree.text(f"{base}/{name}/type") for name in slowed}
    return tuple(f"{kind} slowed" for kind in sorted(kinds) if re.search("cpufreq|devfreq|Processor", kind))


def _capped(tree: Tree) -> tuple[str, ...]:
    """Cores that may not run as fast as they can: by a power mode, a governor's limit or a person."""
    base = "sys/devices/system/cpu/cpufreq"
    for name in tree.names(base):
        may, can = tree.number(f"{base}/{name}/scaling_max_freq"), tree.number(f"{base}/{name}/cpuinfo_max_freq")
        if may and can and may < can:
            return (f"cores limited to {may // 1000} of {can // 1000} MHz",)
    return ()


def _intel(tree: Tree) -> tuple[str, ...]:
    count = tree.number("sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count") or 0
    return (f"package throttled {count} times",) if count else ()


def _battery(tree: Tree) -> int:
    base = "sys/class/power_supply"
    names = tree.names(base)
    if any(tree.number(f"{base}/{name}/online") == 1 for name in names):
        return -1
    for name in names:
        if tree.text(f"{base}/{name}/type") == "Battery" and tree.text(f"{base}/{name}/scope") != "Device":
            charge = tree.number(f"{base}/{name}/capacity")
            if charge is not None and 0 <= charge <= 100:
                return charge
    return -1
