"""`mooring device show` tells what the device says of its hardware, and nothing where an older agent says nothing."""

from __future__ import annotations

import io

from rich.console import Console

from cloud_hub.api.devices import DeviceDetail
from cloud_hub.device_rows import Device
from cloud_hub.operator import render
from firmware_profiles.profile import Accelerator, DeviceProfile, Processor
from modules.messages import DeviceReport, UpdateReport


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
