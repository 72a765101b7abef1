"""The servers that `serving.py` compares: our worker, a bare aiohttp handler, and peers in environments of their own.

Each is one process tree with one model. `start` takes the time from the spawn to the first right answer; memory is the
tree's proportional set size, CPU its user and system time. A peer's environment is made from its lock file when it is
first needed (benchmarks/peers/NAME/.venv), by uv and over the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.sandbox.given import Given
from agent.sandbox.protocol import (
    BlobTaken,
    Notice,
    Order,
    Ping,
    Pong,
    Ready,
    SampleTaken,
    SelfTest,
    Serve,
    Start,
    Stats,
    Stop,
    WindowClosed,
    frame,
)
from benchmarks.load import Answers, closed
from modules.manifest import Manifest, SamplingPolicy, encode_manifest

ROOT = Path(__file__).resolve().parent.parent
PEERS = {"mlserver": "", "bentoml": "", "litserve": "", "pytriton": "/usr/bin/python3"}  # and the Python each needs
START_S = 60.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_JSON = "application/json"


class Server:
    """One process tree. `address` is where it answers, `requests` files with whole HTTP requests by format."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self.requests: dict[str, Path] = {}
        self.start_s = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def load(self, connections: int, seconds: float, kind: str = "", address: str = "") -> Answers:
        request = self.requests[kind] if kind else next(iter(self.requests.values()))
        found = closed(address or self.address, connections, seconds, request)
        assert not found.refused, f"{self.name}: {found.refused} of {found.answers} answers were not 200"
        return found

    def spawn(self, command: Sequence[str], log: Path, **more: Any) -> None:
        """Until the first answer."""
        started = time.monotonic()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, **more
            )
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() - started > START_S:
                raise RuntimeError(f"{self.name} did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        self.start_s = time.monotonic() - started

    def answers(self) -> bool:
        with contextlib.suppress(RuntimeError):
            return closed(self.address, 1, 0.0, next(iter(self.requests.values()))).refused == 0
        return False

    def tree(self) -> list[int]:
        """Ids of the process and its descendants."""
        assert self.process is not None
        found = [self.process.pid]
        for pid in found:  # grows while it is walked
            for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, tasks.read_text().split())
        return found

    def pss_mib(self) -> float:
        kib = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kib / 1024

    def cpu_s(self) -> float:
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total * _TICK_S

    def stop(self) -> None:
        if self.process is None:
            return
        left = self.tree()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


class Ours(Server):
    """Our worker, confined, with samples of 1 % and windows; driven over its socket pair as the agent's parent does."""

    def __init__(self, place: Path, manifest: Manifest, slot: Path) -> None:
        super().__init__("ours", str(place / "ours.sock"))
        self.tcp = ""
        self.ready: Ready | None = None
        self.printed: Any = None  # a file for what it prints, where that is wanted
        self._notices: queue.Queue[Any] = queue.Queue()
        self._manifest, self._slot, self._place = manifest, slot, place

    def start(self) -> None:
        unix, tcp = socket.socket(socket.AF_UNIX), socket.socket()
        unix.bind(self.address)
        tcp.bind(("127.0.0.1", 0))
        fast = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fast.bind(self.address.replace(".sock", ".fast.sock"))
        for one in (unix, tcp, fast):
            one.listen(64)
        self.tcp = f"127.0.0.1:{tcp.getsockname()[1]}"
        self._channel, theirs = socket.socketpair()
        handles = (unix.fileno(), tcp.fileno())
        started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agent.sandbox.worker", str(theirs.fileno())],
            pass_fds=(theirs.fileno(), *handles, fast.fileno()), cwd=ROOT, start_new_session=True,
            stdout=self.printed, stderr=self.printed,
        )  # fmt: skip
        theirs.close()
        threading.Thread(target=self._read, daemon=True).start()
        policy = SamplingPolicy(rate=0.01, window_s=1.0)
        given = Given(fast=fast.fileno())
        order = Start(str(self._slot), encode_manifest(self._manifest), policy, handles, given=given)
        self.ready = self.ask(order, Ready)
        self.ask(SelfTest(), msgspec.Struct)
        self.ask(Serve(), msgspec.Struct)
        assert self.answers(), "ours does not answer"
        self.start_s = time.monotonic() - started

    def ask(self, order: Order, expected: Any) -> Any:
        self._channel.sendall(frame(order))
        notice = self._notices.get(timeout=START_S)
        assert isinstance(notice, expected), notice
        return notice

    def stats(self) -> Stats:
        found: Stats = self.ask(Ping(), Pong).stats
        return found

    def _read(self) -> None:
        """Takes windows and samples as they come, as the parent does."""
        with contextlib.suppress(struct.error, OSError):
            while True:
                (length,) = struct.unpack(">I", self._channel.recv(4, socket.MSG_WAITALL))
                notice = msgspec.msgpack.decode(self._channel.recv(length, socket.MSG_WAITALL), type=Notice)
                if not isinstance(notice, BlobTaken | SampleTaken | WindowClosed):
                    self._notices.put(notice)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.sendall(frame(Stop()))
        super().stop()


class Bare(Server):
    """The least that a user would write: one aiohttp handler around session.run."""

    def start(self, model: Path) -> None:
        program = str(Path(__file__).with_name("_bare.py"))
        self.spawn([sys.executable, program, str(model), self.address], model.with_name("bare.log"), cwd=ROOT)


class Peer(Server):
    def __init__(self, name: str, port: int) -> None:
        super().__init__(name, f"127.0.0.1:{port}")
        self._port = port

    def start(self, model: Path) -> None:
        folder = ROOT / "benchmarks/peers" / self.name
        python = environment(folder, PEERS[self.name])
        self.spawn([str(python), str(folder / "serve.py"), str(model), str(self._port)], model.with_name("peer.log"))


def environment(folder: Path, python: str) -> Path:
    """The peer's interpreter; its environment is made when it is not there."""
    found = folder / ".venv/bin/python"
    if not (folder / ".venv/.complete").exists():
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        print(f"making the environment of {folder.name}, which takes a while", file=sys.stderr)
        subprocess.run(
            [uv, "venv", "-q", "--clear", *(["--python", python] if python else []), ".venv"], cwd=folder, check=True
        )
        lock = str(folder / "requirements.lock")
        subprocess.run([uv, "pip", "install", "-q", "--python", str(found), "-r", lock], cwd=folder, check=True)
        (folder / ".venv/.complete").touch()
    return found


def http(path: str, body: bytes, json_length: int = 0) -> bytes:
    """One whole request."""
    kind = "application/octet-stream" if json_length else _JSON
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    if json_length:
        head += f"Inference-Header-Content-Length: {json_length}\r\n"
    return f"{head}\r\n".encode() + body


def requests(name: str, row: Any, place: Path) -> dict[str, Path]:
    """What the server of that name is asked: its own format, the quickest first. Binary tensors where it has them."""
    flat = row.ravel().tolist()
    tensor = {"name": "x", "datatype": "FP32", "shape": list(row.shape)}
    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": row.nbytes}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    infer = "/v2/models/bench/infer"
    forms = {"binary": http(infer, head + np.ascontiguousarray(row).tobytes(), len(head))}
    if name in ("mlserver", "ours"):
        forms["json"] = http(infer, json.dumps({"inputs": [{**tensor, "data": flat}]}).encode())
    if name == "mlserver":  # it answers binary tensors over HTTP with 500
        del forms["binary"]
    if name in ("bentoml", "litserve"):
        forms = {"json": http("/predict", json.dumps({"x": row.tolist()}).encode())}
    paths = {kind: place / f"{name}.{kind}" for kind in forms}
    for kind, path in paths.items():
        path.write_bytes(forms[kind])
    return paths
