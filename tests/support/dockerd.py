"""A Docker engine of the test session's own: its data, its socket and its containers are nobody else's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import docker

from support.waiting import until_blocking

DRIVERS = ("overlay2", "vfs")  # the second copies every layer, and works everywhere


class CannotRun(Exception):
    """There is no engine here; the message says why."""


class Dockerd:
    """`address` is for clients. May be killed and started again."""

    def __init__(self) -> None:
        # Short: containerd's socket lies below, and a socket's path has at most 107 bytes.
        self.root = Path(tempfile.mkdtemp(prefix="mooring-engine-"))
        self.address = f"unix://{self.root}/docker.sock"
        self._driver = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises CannotRun."""
        program = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if program is None:
            raise CannotRun("dockerd is not installed (Debian: docker.io)")
        if os.geteuid() != 0:
            raise CannotRun("dockerd needs root")
        for driver in [self._driver] if self._driver else DRIVERS:
            if self._began(program, driver):
                self._driver = driver
                return
        raise CannotRun(f"dockerd does not run here: {self._last_words()}")

    def kill(self) -> None:
        """SIGKILL, as the kernel does it to who takes too much memory."""
        self._end(signal.SIGKILL)
        # The kernel ends its containerd, too; where nobody reaps that, its number looks taken for ever.
        for name in ("docker.pid", "run/containerd/containerd.pid"):
            (self.root / name).unlink(missing_ok=True)

    def stop(self) -> None:
        """With its containers, and what it has kept."""
        self._end(signal.SIGTERM)
        for command in Path("/proc").glob("[0-9]*/cmdline"):  # shims of an engine that was killed
            with suppress(OSError, ValueError):
                if str(self.root).encode() in command.read_bytes():
                    os.kill(int(command.parent.name), signal.SIGKILL)
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith(str(self.root)):
                subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)

    def client(self) -> docker.APIClient:
        return docker.APIClient(self.address, version="auto", timeout=30)

    def _began(self, program: str, driver: str) -> bool:
        (self.root / "none.json").write_text("{}")
        command = [
            program, "--host", self.address, "--data-root", f"{self.root}/data", "--exec-root", f"{self.root}/run",
            "--pidfile", f"{self.root}/docker.pid", "--config-file", f"{self.root}/none.json",
            "--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver", driver,
        ]  # fmt: skip
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        with suppress(TimeoutError):
            until_blocking(lambda: self._answers() or self._has_ended(), "dockerd to answer", 40)
        if self._answers():
            return True
        self._end(signal.SIGKILL)
        return False

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(5)
                connection.connect(f"{self.root}/docker.sock")
                connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(100)
        except OSError:
            return False

    def _has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)

    def _last_words(self) -> str:
        with suppress(OSError):
            lines = (self.root / "log").read_text(errors="replace").strip().splitlines()
            return next((line for line in reversed(lines) if "level=fatal" in line or "failed" in line), lines[-1])[
                :400
            ]
        return "it said nothing"
