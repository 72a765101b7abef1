"""What the doctor says of the machine and of the backends: what is there, what would be used, and why not the rest."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import msgspec
import pytest

from agent.checks import Check, asked
from agent.config import AgentConfig
from agent.doctor_backends import backends, containers, fpga
from agent.doctor_hardware import hardware
from agent.probe.tree import Tree
from probe.captured import NAMES, unpack


def said(checks: list[Check], name: str) -> str:
    return "\n".join(f"{check.result} {check.text} -> {check.hint}" for check in checks if check.name == name)


def test_the_machine_is_named_with_what_drives_it(tmp_path: Path) -> None:
    checks = list(hardware(unpack("jetson-orin-nano", tmp_path)))
    assert "Linux for Tegra 36.4.3, profile jetson-orin-nano" in said(checks, "board")
    assert "Cortex-A78AE, 6 cores, 1728 MHz: neon fp16 dotprod" in said(checks, "processor")
    assert "cuda: NVIDIA GPU, driver l4t 36.4.3" in said(checks, "accelerator")
    assert "cpu-thermal 52 °C" in said(checks, "heat")


def test_a_machine_that_is_held_back_is_warned_of_with_what_to_do(tmp_path: Path) -> None:
    pi = said(list(hardware(unpack("raspberry-pi-5", tmp_path / "5"))), "heat")
    assert pi.startswith("warn")
    assert "under-voltage -> a better power supply" in pi
    assert "cooling" in said(list(hardware(unpack("raspberry-pi-4-throttled", tmp_path / "4"))), "heat")


def test_a_card_without_a_driver_is_warned_of(tmp_path: Path) -> None:
    found = said(list(hardware(unpack("nvidia-card-without-driver", tmp_path))), "accelerator")
    assert found == "warn an NVIDIA GPU without its driver -> install NVIDIA's driver for this kernel"


@pytest.mark.parametrize("name", NAMES)
def test_no_machine_is_without_a_word_or_keeps_the_agent_from_its_work(tmp_path: Path, name: str) -> None:
    checks = list(hardware(unpack(name, tmp_path)))
    assert {"board", "processor", "heat"} <= {check.name for check in checks}
    assert not [check for check in checks if check.result == "fail" or not check.text]


async def test_what_the_profile_wishes_for_and_does_not_get_is_told_with_what_to_do(agent_config: AgentConfig) -> None:
    wished = ("CUDAExecutionProvider", "CPUExecutionProvider")
    profile = msgspec.structs.replace(agent_config.profile, providers=wished)
    checks = await backends(msgspec.structs.replace(agent_config, profile=profile))
    first, second = [check for check in checks if check.name == "backend onnx"][:2]
    assert (first.result, first.text.partition("would use ")[2]) == ("ok", "CPUExecutionProvider")
    assert second.result == "warn"
    assert second.text.startswith("not CUDAExecutionProvider")
    assert "onnxruntime-gpu" in second.hint or "libraries" in second.hint
    assert "would use XNNPACK" in said(checks, "backend tflite")
    assert "numpy" in said(checks, "backend script")


def test_an_fpga_with_nothing_that_moves_its_data_is_told(tmp_path: Path) -> None:
    tree = unpack("kria-kv260", tmp_path)
    found = fpga(tree)
    assert found.result == "warn"
    assert found.text.startswith("fpga0 operating; nothing moves data: ModuleNotFoundError")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "udmabuf0").touch()
    assert "data goes through u-dma-buf" in fpga(tree).text
    assert fpga(Tree(tmp_path / "nothing")).result == "ok"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nApi-Version: 1.45\r\n\r\n", "ok unix://{}: API 1.45"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "warn unix://{}: expected a container engine"),
        (b"", "warn unix://{}: expected a container engine"),
    ],
)
async def test_an_engine_is_asked_for_its_version(tmp_path: Path, answer: bytes, words: str) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    path = tmp_path / "engine.sock"
    async with await asyncio.start_unix_server(handle, path):
        found = await containers(f"unix://{path}")
    assert said([found], "containers").startswith(words.format(path))


async def test_a_device_without_an_engine_is_well(tmp_path: Path) -> None:
    for engine, words in (("", "is empty"), (f"unix://{tmp_path}/none", "no engine at")):
        found = await containers(engine)
        assert found.result == "ok"
        assert found.text.startswith("none on this device")
        assert words in found.text


def test_a_library_that_ends_its_process_ends_only_that() -> None:
    works, words = asked(("-c", "import os; os.abort()"))
    assert not works
    assert words == f"it ended with {signal.SIGABRT.name}: a library does not fit"


def test_a_library_that_does_not_come_back_is_given_up() -> None:
    assert asked(("-c", "import time; time.sleep(60)"), timeout_s=0.5) == (False, "no answer within 0.5 s")
