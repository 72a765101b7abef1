"""A real S3-compatible server for tests: moto's, as a process of its own, which may be stopped and let go on.

It keeps objects in memory and looks at no signature; what signatures must be is `support.bucket`'s to say.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cloud_hub.bucket.settings import BucketSettings
from support.waiting import until_blocking

START_S = 60
REGION = "us-east-1"


@dataclass
class S3:
    """`endpoint` is where it is; `buckets` are made by `make`."""

    endpoint: str
    process: subprocess.Popen[bytes]

    def make(self, bucket: str) -> None:
        """A new bucket."""
        self._ask("PUT", bucket)

    def settings(self, folder: Path, request_timeout_s: float = 20.0, cache_mib: float = 64.0) -> BucketSettings:
        """With a file of credentials in `folder`."""
        credentials = folder / "bucket.toml"
        credentials.touch(0o600)
        credentials.write_text('access_key_id = "mooring"\nsecret_access_key = "not a secret"\n')
        return BucketSettings(
            self.endpoint, REGION, str(credentials), request_timeout_s=request_timeout_s, cache_mib=cache_mib
        )

    @contextmanager
    def away(self) -> Iterator[None]:
        """It answers nothing inside."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _ask(self, method: str, path: str) -> None:
        request = urllib.request.Request(f"{self.endpoint}/{path}", method=method)
        with urllib.request.urlopen(request, timeout=START_S):
            pass


@contextmanager
def running_s3() -> Iterator[S3]:
    """A server until the end of the block, with nothing in it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = S3(f"http://127.0.0.1:{port}", process)
    try:
        until_blocking(lambda: _answers(server), "the store to answer", START_S)
        yield server
    finally:
        process.kill()
        process.wait(START_S)


def _answers(server: S3) -> bool:
    assert server.process.poll() is None
    try:
        server._ask("GET", "moto-api/data.json")
    except (urllib.error.URLError, OSError):
        return False
    return True
