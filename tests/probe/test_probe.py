"""The probe reads a captured tree as it would read the machine, and a bare or broken tree refuses nothing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent import __version__
from agent.probe import board
from agent.probe.accelerators import waiting
from agent.probe.device import described, probe, suggest
from agent.probe.heat import Heat, Zone, heat
from agent.probe.processor import processor
from agent.probe.tree import Tree
from firmware_profiles.catalog import built_in
from firmware_profiles.profile import DeviceProfile, Requirements, why_not
from probe.captured import NAMES, unpack

GENERIC = built_in()["generic-x86_64"]
EXPECTED = {
    "amd-graphics": ("x86_64", [], "generic-x86_64"),
    "broken": ("x86_64", ["cuda"], "nvidia-datacenter"),
    "coral-dev-board": ("aarch64", ["edgetpu"], "coral-dev-board"),
    "coral-usb-on-x86": ("x86_64", ["edgetpu"], "generic-x86_64"),
    "intel-npu": ("x86_64", ["openvino", "openvino"], "intel-openvino"),
    "jetson-orin-nano": ("aarch64", ["cuda"], "jetson-orin-nano"),
    "kria-kv260": ("aarch64", ["fpga"], "kria-kv260"),
    "neoverse-server": ("aarch64", [], "generic-aarch64"),
    "nvidia-card-without-driver": ("x86_64", [], "generic-x86_64"),
    "nvidia-server": ("x86_64", ["cuda", "cuda"], "nvidia-datacenter"),
    "pynq-z2": ("armv7l", ["fpga"], "pynq-z2"),
    "qualcomm": ("aarch64", ["qnn"], "generic-aarch64"),
    "raspberry-pi-4-throttled": ("aarch64", [], "raspberry-pi-4"),
    "raspberry-pi-5": ("aarch64", [], "raspberry-pi-5"),
    "virtual-machine": ("x86_64", [], "generic-x86_64"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_tree_is_recognised(tmp_path: Path, name: str) -> None:
    machine, kinds, profile = EXPECTED[name]
    tree = unpack(name, tmp_path)
    found = probe(GENERIC, tree, machine)
    assert [accelerator.kind for accelerator in found.accelerators] == kinds
    assert (found.arch, found.agent_version) == (machine, __version__)
    assert suggest(tree, machine) == profile


@pytest.mark.parametrize(
    ("name", "model", "cores", "features", "mhz"),
    [
        ("raspberry-pi-5", "Cortex-A76", 4, {"neon", "fp16", "dotprod"}, 2400),
        ("raspberry-pi-4-throttled", "Cortex-A72", 4, {"neon"}, 1800),
        ("jetson-orin-nano", "Cortex-A78AE", 6, {"neon", "fp16", "dotprod"}, 1728),
        ("neoverse-server", "Neoverse-N2", 2, {"neon", "fp16", "dotprod", "sve", "sve2", "i8mm", "bf16"}, 0),
        ("pynq-z2", "ARMv7 Processor rev 0 (v7l)", 2, {"neon"}, 0),
        ("coral-usb-on-x86", "Intel(R) N100", 2, {"sse4.2", "avx", "avx2", "fma", "f16c", "avx-vnni"}, 0),
    ],
)
def test_the_processor_and_what_runtimes_choose_by(
    tmp_path: Path, name: str, model: str, cores: int, features: set[str], mhz: int
) -> None:
    found = processor(unpack(name, tmp_path))
    assert (found.model, found.cores, set(found.features), found.mhz) == (model, cores, features, mhz)


def test_matrix_units_and_vector_lengths_are_told_apart(tmp_path: Path) -> None:
    server = processor(unpack("nvidia-server", tmp_path / "a")).features
    assert {"avx512", "avx512-vnni", "avx512-bf16", "avx512-fp16", "avx-vnni", "amx", "amx-int8", "amx-bf16"} <= {
        *server
    }
    guest = processor(unpack("virtual-machine", tmp_path / "b")).features
    assert {"avx512-vnni", "avx512-bf16"} <= {*guest}
    assert not {"amx", "avx-vnni"} & {*guest}


@pytest.mark.parametrize(
    ("name", "drivers"),
    [
        ("nvidia-server", ["nvidia 570.148.08"] * 2),
        ("jetson-orin-nano", ["l4t 36.4.3"]),
        ("coral-dev-board", ["gasket 1.1.4"]),
        ("kria-kv260", ["zocl 2.13.0"]),
        ("pynq-z2", ["zocl loaded"]),
        ("coral-usb-on-x86", [""]),
    ],
)
def test_drivers_come_with_their_versions(tmp_path: Path, name: str, drivers: list[str]) -> None:
    found = probe(GENERIC, unpack(name, tmp_path))
    assert [accelerator.driver for accelerator in found.accelerators] == drivers


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nvidia-card-without-driver", "install NVIDIA's driver"),
        ("coral-usb-on-x86", "install gasket-dkms"),
        ("pynq-z2", "write complete error"),
    ],
)
def test_hardware_that_waits_for_a_driver_is_told_with_what_to_do(tmp_path: Path, name: str, words: str) -> None:
    assert words in " ".join(waiting(unpack(name, tmp_path)))


def test_nothing_waits_where_everything_is_driven(tmp_path: Path) -> None:
    for name in ("nvidia-server", "jetson-orin-nano", "kria-kv260", "virtual-machine"):
        assert not list(waiting(unpack(name, tmp_path / name)))


def test_the_firmware_of_a_pi_says_what_holds_it_back(tmp_path: Path) -> None:
    found = heat(unpack("raspberry-pi-4-throttled", tmp_path / "4"))
    assert found.zones == (Zone("cpu-thermal", 84.5),)
    assert found.throttled == (
        "frequency capped", "throttled", "soft temperature limit", "cores limited to 1500 of 1800 MHz",
    )  # fmt: skip
    assert found.earlier == ("frequency capped", "throttled", "soft temperature limit")
    weak = heat(unpack("raspberry-pi-5", tmp_path / "5"))
    assert (weak.throttled, weak.earlier) == (("under-voltage",), ("soft temperature limit",))
    assert weak.hottest_c == 67.2


def test_zones_that_cannot_be_read_are_left_out_and_limits_are_those_that_hold_back(tmp_path: Path) -> None:
    found = heat(unpack("jetson-orin-nano", tmp_path))
    assert [zone.name for zone in found.zones] == ["cpu-thermal", "gpu-thermal", "tj-thermal"]
    assert found.zones[0].limit_c == 99.0
    assert found.throttled == ("cores limited to 1344 of 1728 MHz",)


def test_a_machine_on_its_battery_says_so(tmp_path: Path) -> None:
    tree = unpack("coral-usb-on-x86", tmp_path)
    assert (heat(tree).battery, heat(tree).earlier) == (41, ("package throttled 12 times",))
    (tmp_path / "sys/class/power_supply/AC/online").write_text("1\n")
    assert heat(tree).battery == -1


def test_a_damaged_tree_says_nothing_and_refuses_nothing(tmp_path: Path) -> None:
    tree = unpack("broken", tmp_path)
    assert heat(tree) == Heat()
    profile = built_in()["raspberry-pi-5"]
    found = probe(profile, tree, "aarch64", tmp_path / "nowhere")
    assert (found.memory_mib, found.disk_mib) == (profile.memory_mib, profile.disk_mib)
    assert why_not(Requirements(memory_mib=3000), found) == []


def test_a_file_in_the_place_of_a_folder_is_no_accelerator(tmp_path: Path) -> None:
    for name in ("sys/class/fpga_manager", "sys/class/thermal", "dev", "sys/bus/pci/devices"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert probe(GENERIC, Tree(tmp_path)).accelerators == ()
    assert heat(Tree(tmp_path)) == Heat()


def test_what_is_described_anew_leaves_what_was_enrolled(tmp_path: Path) -> None:
    profile = msgspec.structs.replace(GENERIC, memory_mib=7, arch="riscv64")
    found = described(profile, unpack("raspberry-pi-5", tmp_path))
    assert (found.memory_mib, found.arch, found.accelerators) == (7, "riscv64", ())
    assert (found.board, found.kernel) == ("Raspberry Pi 5 Model B Rev 1.0", "6.6.31+rpt-rpi-2712")


def test_a_profile_of_an_older_agent_and_of_a_newer_one_can_be_read(tmp_path: Path) -> None:
    old = msgspec.json.decode(b'{"name":"pi","arch":"aarch64","accelerators":[{"kind":"fpga"}]}', type=DeviceProfile)
    assert old.processor.cores == 0
    new = msgspec.to_builtins(probe(GENERIC, unpack("jetson-orin-nano", tmp_path)))
    new["processor"]["threads_per_core"] = 2
    new["accelerators"][0]["node"] = "/dev/nvhost-gpu"
    assert msgspec.convert(new, DeviceProfile).board.startswith("NVIDIA Jetson")


def test_this_machine_can_be_probed() -> None:
    found = probe(GENERIC)
    assert found.memory_mib > 0
    assert found.disk_mib > 0
    assert found.processor.cores > 0
    assert found.kernel
    assert board.model(Tree()) is not None
