"""`mooring device show` tells what the device says of its hardware, and nothing where an older agent says nothing."""

from __future__ import annotations

import io
import re
from typing import Any

import msgspec
import pytest
from rich.console import Console, RenderableType

from cloud_hub.api.devices import DeviceDetail
from cloud_hub.device_rows import Device, Running
from cloud_hub.explaining import Coming
from cloud_hub.fleet import FleetSummary, ModuleCount, ProfileCount
from cloud_hub.operator import render, render_fleet
from cloud_hub.reports import Difference
from cloud_hub.rollouts.states import ExecutionState
from firmware_profiles.profile import Accelerator, DeviceProfile, Processor
from modules.messages import DeviceReport, UpdateReport
from modules.vitals import LinkQuality, Vitals
from support.devices import make_report


def shown(profile: DeviceProfile | None, heat: str = "") -> str:
    idle = UpdateReport("idle")
    report = None if profile is None else DeviceReport("cam", 1, 1.0, "0.2.0", profile, 1, 1, (), idle, idle, heat=heat)
    device = Device("cam", "pi", {}, 0.0, None, True, 1, 1.0, report)
    console = Console(file=io.StringIO(), width=200)
    console.print(render.device(DeviceDetail(device, (), ())))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_hardware_of_a_device_is_shown_with_its_drivers() -> None:
    profile = DeviceProfile(
        "jetson", "aarch64", memory_mib=7619, disk_mib=59_000, board="NVIDIA Jetson Orin Nano", kernel="5.15.148-tegra",
        accelerators=(Accelerator("cuda", "NVIDIA GPU", driver="l4t 36.4.3"), Accelerator("edgetpu", "Coral")),
        processor=Processor("Cortex-A78AE", 6, ("neon", "dotprod"), 1728),
    )  # fmt: skip
    words = shown(profile)
    assert "NVIDIA Jetson Orin Nano" in words
    assert "Cortex-A78AE, 6 cores, 1728 MHz, neon dotprod" in words
    assert "cuda: NVIDIA GPU (l4t 36.4.3); edgetpu: Coral" in words
    assert "7619 MiB, disk 59000 MiB" in words
    assert "5.15.148-tegra" in words


def test_a_device_that_says_little_is_shown_with_that() -> None:
    assert "aarch64" in shown(DeviceProfile("pi", "aarch64"))
    assert "processor" not in shown(None)


def test_a_device_whose_modules_give_way_to_heat_is_shown_so() -> None:
    assert "hot: modules give way" in shown(DeviceProfile("pi", "aarch64"), heat="hot")
    assert "heat" not in shown(DeviceProfile("pi", "aarch64"))


def rendered(shown: RenderableType, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def listed(number: int, **changes: Any) -> Device:
    known = Device(
        f"cam-{number}", "raspberry-pi-5", {"site": "lyon", "line": "2"}, 0.0, None, True, 1, None, None,
        agent_version="0.2.0", seen_at=1_700_000_000.0,
        runs=(Running("digits", 8, "serving", True), Running("digits", 9, "serving", False, "candidate")),
    )  # fmt: skip
    return msgspec.structs.replace(known, **changes)


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_list_of_devices_fits_the_terminal_and_loses_nothing(width: int) -> None:
    shown = rendered(render_fleet.devices([listed(1), listed(2, online=False, differs=True)]), width)
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    said = re.sub(r"\s", "", shown)
    for word in ("cam-1", "cam-2", "offline", "differs", "0.2.0", "site=lyon") if width > 80 else ("cam-1", "cam-2"):
        assert word in said


def test_a_list_names_candidates_and_what_is_not_verified() -> None:
    shown = rendered(render_fleet.devices([listed(1)]), 200)
    assert "digits:8 serving, digits (candidate):9 serving (not verified)" in shown


def test_a_summary_has_its_counts() -> None:
    found = FleetSummary(
        4, 3, 1, 1, 2, 0, 0,
        (ProfileCount("edge", "0.2.0", 4, 3, 2, 0, 1),),
        (ModuleCount("digits", 8, "main", "serving", False, 4),),
    )  # fmt: skip
    shown = rendered(render_fleet.summary(found), 120)
    assert re.search(r"devices\s+4\nonline\s+3\noffline\s+1", shown)
    assert re.search(r"edge\s+0\.2\.0\s+4\s+3\s+2\s+0\s+1", shown)
    assert re.search(r"digits\s+8\s+serving \(not verified\)\s+4", shown)


def test_differences_are_shown_with_their_causes_and_what_is_coming() -> None:
    difference = Difference("digits", "other-version", 9, 8, False, "offline", "the device is offline since noon")
    waiting = Coming("r7", "digits", 9, ExecutionState.WAITING, "waits for group 2 of r7, which is not open yet")
    detail = DeviceDetail(listed(1), (), (difference,), (waiting,), ("pilot",))
    shown = rendered(render.device(detail), 160)
    assert "the device is offline since noon" in shown
    assert "waits for group 2 of r7, which is not open yet" in shown
    assert re.search(r"groups\s+pilot", shown)


def test_another_configuration_is_shown_as_such() -> None:
    text = "it runs with configuration 0a1b, and is to have configuration 2c3d (revision 4): it has not begun yet"
    other = Difference("digits", "other-configuration", 9, 9, False, "not-begun", text, "2c3d", "0a1b", 4)
    shown = rendered(render.device(DeviceDetail(listed(1), (), (other,))), 200)
    assert "other-configuration" in shown
    assert "is to have configuration 2c3d (revision 4)" in shown


def test_vitals_are_shown_in_words() -> None:
    vitals = Vitals(7200.0, 9000, 70, 100, 0.5, 71.0, LinkQuality(3, 12.5, 2048, 10))
    report = msgspec.structs.replace(make_report("cam-1"), vitals=vitals)
    shown = rendered(render.device(DeviceDetail(listed(1, report=report), (), ())), 160)
    for words in ("memory 100 MiB, disk 70 MiB", "71 °C", "2.0 h", "12.5 ms, 3 reconnects, 2.0 KiB up, 10 B down"):
        assert words in shown
