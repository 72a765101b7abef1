"""A file through Mosquitto against the same file by plain HTTPS, over wires with a delay, a rate and loss.

MQTT is the real way: the hub's link and Mosquitto at one end of an emulated wire (benchmarks/wire), the agent's link
and fetcher in a process at the other, TLS 1.3 on both hops, chunks checked against the signed manifest and synced.
HTTPS is the plain way: aiohttp serves the stored file over TLS 1.3, curl writes it to a file, which is then hashed and
synced, as any downloader must that wants to install it. MQTT's time runs from the call of `fetch` on a connection that
stands, as a device's does; curl's includes its connection and handshake, as a plain download's does, but not the start
of the program. The two take turns; all figures are medians of the rounds.

`link_share` is file bytes per second over the TCP payload that full packets can carry at the wire's rate (1448 of 1500
bytes): what TLS, MQTT and requests add counts as lost. `command_p99_ms` is a doorbell, QoS 1, from the hub's own
connection every 100 ms during the downloads over that wire, until the agent's link hands it on. `parent_extra_mib` is
the most that the device's process was resident during any download (VmHWM) above what it was before its first.

A whole run takes under four minutes, so the wire with loss moves a smaller file than the others. Words on the command
line choose cases, and TCP's congestion control in place of the machine's: `benchmarks/transfer.py 50ms 20mbit reno`.
Without root, gcc and TUN only `loopback` is measured.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import median, report
from benchmarks.wire import ADDRESS, Shape, Wire, missing
from benchmarks.wire.check import measure
from benchmarks.wire.lines import End
from benchmarks.wire.release import DEVICE, Prepared, prepare
from cloud_hub.operator.demo.processes import once

SIZES = {"large.bin": 50_000_000, "small.bin": 2_000_000}
SETTLE_S = 2.0
COMMAND_EVERY_S = 0.1
CURL_DEADLINE_S = 240.0
CONGESTION = ("cubic", "bbr", "reno")
HERE = Path(__file__).resolve().parent / "wire"


@dataclass(frozen=True)
class Case:
    """`https_rounds` may be fewer where a round is long and its figure is no goal."""

    name: str
    file: str
    rounds: int
    shape: Shape | None = None
    https_rounds: int = 3
    commands: bool = False


CASES = (
    Case("loopback", "large.bin", 5, https_rounds=5),
    Case("50ms", "large.bin", 3, Shape(delay_ms=25)),
    Case("600ms", "large.bin", 3, Shape(delay_ms=300)),
    Case("loss", "small.bin", 3, Shape(delay_ms=25, loss=0.02)),
    Case("20mbit", "large.bin", 3, Shape(rate_bits=20_000_000, delay_ms=25), https_rounds=1, commands=True),
)


@dataclass
class Found:
    """What one case gave: seconds of each download, ms of each command, MiB above rest, what the wire really did."""

    mqtt_s: list[float] = field(default_factory=list)
    https_s: list[float] = field(default_factory=list)
    command_ms: list[float] = field(default_factory=list)
    lost_commands: int = 0
    reconnects: int = 0
    extra_mib: float = 0.0
    wire: dict[str, float] = field(default_factory=dict)


class Bench:
    """Both ends over one wire, which changes its shape from case to case."""

    def __init__(self, folder: Path, prepared: Prepared, hub: End, wire: Wire | None) -> None:
        self._folder, self._prepared, self._hub, self._wire = folder, prepared, hub, wire

    async def run(self, case: Case) -> Found:
        found = Found()
        if case.shape is not None:
            assert self._wire is not None
            self._wire.reshape(case.shape)
            found.wire = _measured(case, self._wire)
        async with self._device(case) as device:
            await asyncio.sleep(SETTLE_S)
            rest = _status_mib(device.pid, "VmRSS")
            Path(f"/proc/{device.pid}/clear_refs").write_text("5")  # VmHWM begins anew
            for number in range(max(case.rounds, case.https_rounds)):
                if number < case.rounds:
                    await self._mqtt(case, device, found)
                if number < case.https_rounds:
                    found.https_s.append(await self._https(case))
            found.extra_mib = _status_mib(device.pid, "VmHWM") - rest
        return found

    @asynccontextmanager
    async def _device(self, case: Case) -> AsyncIterator[End]:
        prepared = self._prepared
        script = [sys.executable, str(HERE / "device_end.py"), str(prepared.state), str(prepared.manifest)]
        async with End(self._at(case, script), self._folder / "device.log") as device:
            yield device

    def _at(self, case: Case, arguments: Sequence[str]) -> list[str]:
        """The command where the device is: at the far end, or beside the hub."""
        if self._wire is None or case.shape is None:
            return list(arguments)
        return self._wire.command("far", arguments)

    async def _mqtt(self, case: Case, device: End, found: Found) -> None:
        if case.commands:
            await device.ask("heard")
            await self._hub.ask("ring", device=DEVICE, every_s=COMMAND_EVERY_S)
        answer = await device.ask("pull", file=case.file)
        found.mqtt_s.append(answer["seconds"])
        found.reconnects += answer["reconnects"]
        if case.commands:
            rung = (await self._hub.ask("quiet"))["rung"]
            await asyncio.sleep(SETTLE_S)
            heard = (await device.ask("heard"))["heard"]
            found.command_ms += [1000 * (heard[number] - at) for number, at in rung.items() if number in heard]
            found.lost_commands += sum(number not in heard for number in rung)

    async def _https(self, case: Case) -> float:
        digest = self._prepared.files[case.file]
        target = self._folder / "downloaded"
        target.unlink(missing_ok=True)
        curl = [
            "curl", "--silent", "--show-error", "--fail", "--tlsv1.3", "--cacert", str(self._prepared.server_ca),
            "--output", str(target), "--write-out", "%{time_total}", f"{self._hub.hello['https']}/{digest}",
        ]  # fmt: skip
        seconds = float(await once(self._at(case, curl), CURL_DEADLINE_S))
        began = time.monotonic()
        with target.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest
            os.fsync(file.fileno())
        return seconds + time.monotonic() - began


def _measured(case: Case, wire: Wire) -> dict[str, float]:
    found = measure(wire)
    values = {f"wire_rtt_ms_{case.name}": found.rtt_ms}
    if wire.shape.rate_bits:
        values[f"wire_mbit_{case.name}"] = found.rate_bits / 1e6
    if wire.shape.loss:
        values[f"wire_loss_{case.name}"] = found.loss
    return values


def _status_mib(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


async def main(cases: Iterable[Case], wire: Wire | None) -> None:
    metrics: dict[str, float] = {}
    host = ADDRESS["near"] if wire is not None else "localhost"
    with tempfile.TemporaryDirectory() as folder:
        prepared = await prepare(Path(folder), host, SIZES)
        script = [sys.executable, str(HERE / "hub_end.py"), str(prepared.hub)]
        async with End(script, Path(folder) / "hub-end.log") as hub:
            bench = Bench(Path(folder), prepared, hub, wire)
            extra: list[float] = []
            for case in cases:
                found = await bench.run(case)
                _print(case, found)
                extra.append(found.extra_mib)
                metrics |= _metrics(case, found)
    report("transfer", metrics | {"parent_extra_mib": max(extra)})


def _metrics(case: Case, found: Found) -> dict[str, float]:
    size = SIZES[case.file]
    values = {f"mqtt_mb_s_{case.name}": size / 1e6 / median(found.mqtt_s)}
    values[f"https_mb_s_{case.name}"] = size / 1e6 / median(found.https_s)
    values[f"mqtt_over_https_{case.name}"] = median(found.https_s) / median(found.mqtt_s)
    if case.shape is not None and case.shape.rate_bits:
        values["link_share"] = size / median(found.mqtt_s) / case.shape.payload_rate
        values["https_link_share"] = size / median(found.https_s) / case.shape.payload_rate
    if found.command_ms:
        values["command_p50_ms"] = median(found.command_ms)
        values["command_p99_ms"] = sorted(found.command_ms)[int(0.99 * len(found.command_ms))]
        values["commands_lost"] = found.lost_commands
    return values | found.wire


def _print(case: Case, found: Found) -> None:
    mqtt, https = (", ".join(f"{value:.2f}" for value in values) for values in (found.mqtt_s, found.https_s))
    print(f"{case.name:9} {SIZES[case.file] / 1e6:.0f} MB: MQTT {mqtt} s; HTTPS {https} s", flush=True)
    print(f"          {found.extra_mib:.1f} MiB above rest, {found.reconnects} reconnects, {found.wire}", flush=True)


def _chosen(names: Collection[str]) -> list[Case]:
    lacking = missing()
    if lacking:
        print(f"only loopback is measured: {lacking}", flush=True)
    known = {case.name: case for case in CASES if case.shape is None or not lacking}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return [case for case in known.values() if not names or case.name in names]


def _start(names: Sequence[str]) -> None:
    if shutil.which("curl") is None:
        raise SystemExit("curl must be installed: it is what MQTT is measured against")
    congestion = next((name for name in names if name in CONGESTION), "")
    cases = _chosen(set(names) - set(CONGESTION))
    if missing():
        asyncio.run(main(cases, None))
        return
    with Wire(Shape(), congestion=congestion) as wire, wire.inside("near"):
        print(f"congestion control: {wire.congestion}", flush=True)
        asyncio.run(main(cases, wire))


if __name__ == "__main__":
    _start(sys.argv[1:])
