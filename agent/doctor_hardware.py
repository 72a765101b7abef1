"""What `mooring-agent doctor` says of the machine: what it is, what is built in, and whether it is held back."""

from __future__ import annotations

from collections.abc import Iterator

from agent.checks import Check
from agent.probe import board
from agent.probe.accelerators import accelerators, waiting
from agent.probe.heat import Heat, heat
from agent.probe.processor import processor
from agent.probe.tree import THIS, Tree

LOW_BATTERY = 20  # percent


def hardware(tree: Tree = THIS) -> Iterator[Check]:
    known = board.known_as(tree)
    model = board.model(tree) or "no name in firmware or device tree"
    l4t = f", Linux for Tegra {board.tegra(tree)}" if board.tegra(tree) else ""
    fits = f", profile {known}" if known else ""
    yield Check("board", "ok", f"{model}, Linux {board.kernel(tree)}{l4t}{fits}")
    found = processor(tree)
    speed = f", {found.mhz} MHz" if found.mhz else ""
    yield Check(
        "processor", "ok", f"{found.model or 'unknown'}, {found.cores} cores{speed}: {' '.join(found.features) or '-'}"
    )
    for accelerator in accelerators(tree):
        driver = f", driver {accelerator.driver}" if accelerator.driver else ""
        yield Check("accelerator", "ok", f"{accelerator.kind}: {accelerator.name}{driver}")
    for words in waiting(tree):
        what, _, hint = words.partition(": ")
        yield Check("accelerator", "warn", what, hint)
    yield from _heat(heat(tree))


def _heat(found: Heat) -> Iterator[Check]:
    zones = ", ".join(f"{zone.name} {zone.celsius:.0f} °C" for zone in found.zones) or "no sensor that can be read"
    near = [zone.name for zone in found.zones if zone.limit_c and zone.celsius >= zone.limit_c]
    held = [*found.throttled, *(f"{name} at its limit" for name in near)]
    if held:
        hint = "a better power supply" if "under-voltage" in held else "cooling, or less work; see the settings of heat"
        yield Check("heat", "warn", f"{zones}; held back now: {', '.join(held)}", hint)
    elif found.earlier:
        yield Check("heat", "warn", f"{zones}; held back since the start: {', '.join(found.earlier)}")
    else:
        yield Check("heat", "ok", zones)
    if found.battery >= 0:
        low = found.battery < LOW_BATTERY
        yield Check("power", "warn" if low else "ok", f"on battery, {found.battery} % left")
