"""The probe reads a captured tree as it would read the machine, and a bare or broken tree refuses nothing."""

from pathlib import Path

import pytest

from agent import __version__
from agent.hardware import probe, suggest
from firmware_profiles.catalog import built_in
from firmware_profiles.profile import Requirements, why_not

GENERIC = built_in()["generic-x86_64"]
PI = {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0", "proc/meminfo": "MemTotal:        3884396 kB\n"}
SERVER = {
    "proc/meminfo": "MemTotal:       131072000 kB\nMemFree: 1 kB\n",
    "proc/driver/nvidia/gpus/0000:18:00.0/information": "Model: \t\t NVIDIA H200\nIRQ:   1\n",
    "proc/driver/nvidia/gpus/0000:19:00.0/information": "Model: \t\t NVIDIA H200\nIRQ:   1\n",
}
JETSON = {"proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0", "dev/nvhost-gpu": ""}
CORAL_USB = {"sys/bus/usb/devices/1-1/idVendor": "18d1\n", "sys/bus/usb/devices/1-1/idProduct": "9302\n"}
KRIA = {
    "proc/device-tree/model": "xlnx,zynqmp-sk-KV260-rev1\0",
    "sys/class/fpga_manager/fpga0/name": "Xilinx ZynqMP FPGA Manager\n",
}
INTEL = {
    "sys/class/drm/renderD128/device/vendor": "0x8086\n",
    "sys/class/accel/accel0/device/vendor": "0x8086\n",
    "sys/class/drm/card0/device/vendor": "0x8086\n",
}
AMD = {"sys/class/drm/renderD128/device/vendor": "0x1002\n"}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "machine", "kinds", "name"),
    [
        (PI, "aarch64", [], "raspberry-pi-4"),
        (SERVER, "x86_64", ["cuda", "cuda"], "nvidia-datacenter"),
        (JETSON, "aarch64", ["cuda"], "jetson-orin-nano"),
        (CORAL_USB, "x86_64", ["edgetpu"], "generic-x86_64"),
        ({"dev/apex_0": ""}, "aarch64", ["edgetpu"], "generic-aarch64"),
        (KRIA, "aarch64", ["fpga"], "kria-kv260"),
        (INTEL, "x86_64", ["openvino", "openvino"], "intel-openvino"),
        (AMD, "x86_64", [], "generic-x86_64"),
        ({"dev/fastrpc-cdsp": ""}, "aarch64", ["qnn"], "generic-aarch64"),
        ({}, "x86_64", [], "generic-x86_64"),
    ],
    ids=["pi", "server", "jetson", "coral-usb", "coral-pcie", "kria", "intel", "amd", "qualcomm", "bare"],
)
def test_a_captured_tree_is_recognised(
    tmp_path: Path, files: dict[str, str], machine: str, kinds: list[str], name: str
) -> None:
    root = tree(tmp_path, files)
    found = probe(GENERIC, root, machine)
    assert [accelerator.kind for accelerator in found.accelerators] == kinds
    assert (found.arch, found.agent_version) == (machine, __version__)
    assert suggest(root, machine) == name


def test_memory_and_names_come_from_the_tree(tmp_path: Path) -> None:
    found = probe(GENERIC, tree(tmp_path, SERVER), "x86_64")
    assert found.memory_mib == 128_000
    assert found.accelerators[0].name == "NVIDIA H200"


def test_what_cannot_be_read_keeps_the_profiles_word(tmp_path: Path) -> None:
    profile = built_in()["raspberry-pi-5"]
    found = probe(profile, tree(tmp_path, {"proc/meminfo": "nonsense"}), "aarch64", tmp_path / "nowhere")
    assert (found.memory_mib, found.disk_mib) == (profile.memory_mib, profile.disk_mib)
    assert why_not(Requirements(memory_mib=3000), found) == []


def test_a_file_in_the_place_of_a_folder_is_no_accelerator(tmp_path: Path) -> None:
    assert probe(GENERIC, tree(tmp_path, {"sys/class/fpga_manager": "x", "dev": "x"})).accelerators == ()


def test_this_machine_can_be_probed() -> None:
    found = probe(GENERIC)
    assert found.memory_mib > 0
    assert found.disk_mib > 0
