"""The conformance client works: on a good repository, an older and an expired one, and on targets that were changed."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from support import uptane
from support.repository import PUBLISHER, Repo
from support.waiting import until_blocking

TARGET = f"modules/{PUBLISHER}/digits/1/pi.json"
CONTENT = b"what was signed"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return None


@dataclass(frozen=True)
class Bench:
    """A repository in memory, written to a folder that a web server shows, and the client's folders."""

    repo: Repo
    folder: Path
    url: str

    def write(self) -> None:
        for (_, name), data in self.repo.files.items():
            (self.folder / "metadata" / name).write_bytes(data)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        client = Path(__file__).parent / "client"
        command = [sys.executable, str(client), "--metadata-dir", str(self.folder / "trusted"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def refresh(self) -> subprocess.CompletedProcess[str]:
        self.write()
        return self.run("--metadata-url", f"{self.url}/metadata", "refresh")

    def download(self) -> subprocess.CompletedProcess[str]:
        self.write()
        where = ("--target-base-url", f"{self.url}/targets", "--target-dir", str(self.folder / "got"))
        return self.run("--metadata-url", f"{self.url}/metadata", *where, "--target-name", TARGET, "download")

    def put_target(self, content: bytes) -> None:
        target = self.repo.roles[PUBLISHER].signed.targets[TARGET]
        place, _, name = TARGET.rpartition("/")
        (self.folder / "targets" / place).mkdir(parents=True, exist_ok=True)
        (self.folder / "targets" / place / f"{target.hashes['sha256']}.{name}").write_bytes(content)

    def got(self) -> list[bytes]:
        return [file.read_bytes() for file in (self.folder / "got").iterdir()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    for name in ("metadata", "targets", "got", "trusted"):
        (tmp_path / name).mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    repo = Repo("image", {}, consistent=True)
    repo.delegate(PUBLISHER, f"modules/{PUBLISHER}/*/*/*")
    repo.roles[PUBLISHER].signed.targets[TARGET] = TargetFile.from_data(TARGET, CONTENT, ["sha256"])
    repo.write("root")
    repo.publish()
    bench = Bench(repo, tmp_path, f"http://127.0.0.1:{server.server_port}")
    bench.put_target(CONTENT)
    (tmp_path / "first.json").write_bytes(repo.files["image", "1.root.json"])
    assert bench.run("init", str(tmp_path / "first.json")).returncode == 0
    try:
        yield bench
    finally:
        server.shutdown()
        server.server_close()
        until_blocking(lambda: not thread.is_alive(), "the web server to end")


def test_a_good_repository_is_kept_under_unversioned_names(bench: Bench) -> None:
    assert bench.refresh().returncode == 0
    kept = sorted(file.name for file in (bench.folder / "trusted").glob("*.json"))
    assert kept == ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    done = bench.download()
    assert (done.returncode, bench.got()) == (0, [CONTENT])
    assert (bench.folder / "trusted" / f"{PUBLISHER}.json").is_file()


def test_an_older_repository_is_refused(bench: Bench) -> None:
    older = bench.repo.files["image", "timestamp.json"]
    bench.repo.publish()
    assert bench.refresh().returncode == 0
    bench.repo.files["image", "timestamp.json"] = older
    refused = bench.refresh()
    assert (refused.returncode, refused.stderr.partition(":")[0]) == (1, "rollback")


def test_an_expired_repository_is_refused(bench: Bench) -> None:
    uptane.expired(bench.repo, "timestamp")
    refused = bench.refresh()
    assert (refused.returncode, refused.stderr.partition(":")[0]) == (1, "freeze")


def test_a_new_root_is_kept_and_shown_when_what_follows_is_refused(bench: Bench) -> None:
    bench.repo.rotate("timestamp")
    uptane.unsigned(bench.repo, "timestamp")
    refused = bench.refresh()
    assert (refused.returncode, refused.stderr.partition(":")[0]) == (1, "bad-signature")
    assert (bench.folder / "trusted" / "root.json").read_bytes() == bench.repo.files["image", "2.root.json"]


@pytest.mark.parametrize("content", [b"what was Signed", b"what was signe", b"what was signed, and more"])
def test_a_target_that_is_not_what_was_signed_is_not_written(bench: Bench, content: bytes) -> None:
    bench.put_target(content)
    refused = bench.download()
    assert (refused.returncode, bench.got()) == (1, [])
    assert "Error" in refused.stderr
