"""The child that talks to the container engine: `python -m agent.containers.engine FD ADDRESS`.

Docker's SDK costs about 30 MB, so it is here and nowhere else. Each ask gets a thread, because loading an image takes
long and ending a container must not wait. When the agent is gone, this child ends its containers and goes, too.
Started by `agent.containers.client`. Works with Docker 20.10 (API 1.41) and later.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import docker
import docker.errors
import msgspec
import requests.exceptions

from agent.containers.protocol import (
    LENGTH,
    MANAGED,
    MAX_FRAME_BYTES,
    Answer,
    Ask,
    End,
    Ended,
    Failed,
    Load,
    Loaded,
    Look,
    Order,
    Reply,
    Run,
    Running,
    Seen,
    Sweep,
    Swept,
    frame,
)
from agent.sandbox.log import MAX_BYTES_PER_S, RotatingLog
from modules.errors import ModuleError
from modules.images import Image, ImageError, load_archive, read_image
from modules.layers import stream
from modules.manifest import Manifest, decode_manifest

CALL_TIMEOUT_S = 30  # of one request to the engine
LOAD_TIMEOUT_S = 600  # between two bytes while an image is loaded
END_TIMEOUT_S = 10.0  # from SIGKILL until the engine has noticed
LAST_LINES = 5
MAX_LAST = 600

log = logging.getLogger("agent.containers.engine")


class Engine:
    """What can be asked of one engine. Every method blocks."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._version = "auto"  # until it has been asked for
        self._own: set[str] = set()
        self._loading = threading.Lock()  # twice the same image at once would cost twice the disk

    def answer(self, order: Order) -> Answer:
        try:
            return self._do(order)
        except ModuleError as error:
            return Failed(error.key, str(error))
        except docker.errors.ImageNotFound as error:
            return Failed("image-refused", f"engine: {_words(error)}")
        except docker.errors.APIError as error:
            return Failed("engine-refused", f"engine: {_words(error)}")
        except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
            self._version = "auto"  # another engine perhaps comes back
            return Failed("engine-unreachable", f"engine {self._address}: {str(error)[:300]}; is it running?")

    def end_all(self) -> None:
        """What this child has started ends with the agent."""
        for container in list(self._own):
            with contextlib.suppress(Exception), self._client() as client:
                client.remove_container(container, force=True)

    def _do(self, order: Order) -> Answer:
        with self._client(LOAD_TIMEOUT_S if isinstance(order, Load) else CALL_TIMEOUT_S) as client:
            match order:
                case Load():
                    with self._loading:
                        return self._load(client, order)
                case Run():
                    return self._run(client, order)
                case End(container=container):
                    return self._end(client, container)
                case Sweep():
                    return self._sweep(client, order)
                case Look():
                    return _look(client)

    def _client(self, timeout: float | None = CALL_TIMEOUT_S) -> docker.APIClient:
        """To be closed; not for two threads."""
        client = docker.APIClient(self._address, version=self._version, timeout=timeout)
        self._version = client.api_version
        return client

    def _load(self, client: docker.APIClient, order: Load) -> Loaded:
        slot = Path(order.slot)
        manifest = decode_manifest(order.manifest)
        if manifest.runtime.container is None:
            raise ImageError(f"{manifest.name}: expected a module with a container")
        image = read_image(manifest.runtime.container, partial(_read_file, slot))
        for known in (order.tag, image.id):  # loaded before: for this slot, or for another with the same content
            found = _found(client, known)
            if found is not None and _is(found, image):
                client.tag(found["Id"], *order.tag.split(":"))
                return Loaded(found["Id"], fresh=False)
        _send_image(client, slot, image, manifest, order.tag)
        found = client.inspect_image(order.tag)
        if not _is(found, image):
            client.remove_image(order.tag)
            text = f"image of {manifest.name}: expected {image.id}, the engine has {found['Id']}; it was removed"
            raise ImageError(text)
        return Loaded(found["Id"], fresh=True)

    def _run(self, client: docker.APIClient, order: Run) -> Running:
        with contextlib.suppress(docker.errors.NotFound):
            client.remove_container(order.name, force=True)  # of an agent that was killed
        made = client.create_container_from_config(order.options, order.name)["Id"]
        self._own.add(made)
        try:
            client.start(made)
            pid = client.inspect_container(made)["State"]["Pid"]
        except BaseException:
            self._forget(client, made)
            raise
        if order.log:
            self._follow(made, Path(order.log))
        return Running(made, pid)

    def _end(self, client: docker.APIClient, container: str) -> Ended:
        try:
            with contextlib.suppress(docker.errors.APIError):  # it runs no more
                client.kill(container)
            state = _stopped(client, container)
            code, oom = int(state.get("ExitCode", -1)), bool(state.get("OOMKilled"))
            last = client.logs(container, tail=LAST_LINES) if code else b""
        except docker.errors.NotFound:
            self._own.discard(container)
            return Ended(-signal.SIGKILL, out_of_memory=False)
        self._forget(client, container)
        return Ended(code, oom, last[-MAX_LAST:].decode(errors="replace").strip())

    def _forget(self, client: docker.APIClient, container: str) -> None:
        with contextlib.suppress(docker.errors.NotFound):
            client.remove_container(container, force=True, v=True)
        self._own.discard(container)

    def _sweep(self, client: docker.APIClient, order: Sweep) -> Swept:
        label = f"{MANAGED}={order.owner}"
        left = [
            found["Id"]
            for found in client.containers(all=True, filters={"label": label})
            if found["Id"] not in self._own and found["Id"] not in order.keep
        ]
        for container in left:
            self._forget(client, container)
        images = 0
        repository = f"mooring-{order.owner}"
        for image in client.images(repository):
            for tag in image.get("RepoTags") or ():
                if tag.startswith(f"{repository}:") and tag not in order.tags:
                    with contextlib.suppress(docker.errors.APIError):  # still in use: the next sweep has it
                        client.remove_image(tag)
                        images += 1
        return Swept(len(left), images)

    def _follow(self, container: str, path: Path) -> None:
        threading.Thread(target=self._copy_log, args=(container, path), daemon=True).start()

    def _copy_log(self, container: str, path: Path) -> None:
        """Until it ends; no faster than a worker may print."""
        output = RotatingLog(path)
        with contextlib.suppress(docker.errors.DockerException, requests.exceptions.RequestException, OSError):
            for block in self._client(None).logs(container, stream=True, follow=True):
                output.write(block)
                time.sleep(len(block) / MAX_BYTES_PER_S)
        output.close()


def _found(client: docker.APIClient, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = client.inspect_image(name)
    except docker.errors.ImageNotFound:
        return None
    return found


def _send_image(client: docker.APIClient, slot: Path, image: Image, manifest: Manifest, tag: str) -> None:
    """Streams it; what the engine complains of comes in its answer, not in its status."""
    blocks = stream(load_archive(image, manifest, tag), partial(_opened, slot))
    for said in client.load_image(blocks, quiet=True):
        if said.get("error"):
            raise ImageError(f"image of {manifest.name}: the engine refuses it: {str(said['error'])[:300]}")


def _opened(slot: Path, path: str) -> BinaryIO:
    try:
        return (slot / path).open("rb")
    except OSError as error:
        raise ImageError(f"image: {path} is not among the module's files ({error.strerror})") from error


def _read_file(slot: Path, path: str) -> bytes:
    with _opened(slot, path) as file:
        return file.read()


def _stopped(client: docker.APIClient, container: str) -> dict[str, Any]:
    """Its state, once the engine knows that it has ended."""
    limit = time.monotonic() + END_TIMEOUT_S
    while True:
        state: dict[str, Any] = client.inspect_container(container)["State"]
        if not state.get("Running") or time.monotonic() > limit:
            return state
        time.sleep(0.02)


def _look(client: docker.APIClient) -> Seen:
    info = client.info()
    return Seen(info.get("ServerVersion", ""), info.get("Driver", ""), tuple(sorted(info.get("Runtimes") or ())))


def _is(found: dict[str, Any], image: Image) -> bool:
    """Whether the engine's image has our content: by its layers, and by its id, which is the config's digest or, in
    newer stores, the manifest's.
    """
    layers = tuple((found.get("RootFS") or {}).get("Layers") or ())
    return layers == image.config.rootfs.diff_ids and found.get("Id") in (image.id, image.digest)


def _words(error: docker.errors.APIError) -> str:
    return str(error.explanation or error)[:300]


def serve(channel: socket.socket, engine: Engine) -> None:
    """Until the agent hangs up."""
    sending = threading.Lock()
    while (ask := _read(channel)) is not None:
        threading.Thread(target=_answer, args=(channel, sending, engine.answer, ask), daemon=True).start()


def _answer(channel: socket.socket, sending: threading.Lock, answer: Callable[[Order], Answer], ask: Ask) -> None:
    try:
        said = answer(ask.order)
    except Exception as error:
        log.exception("order %s failed", type(ask.order).__name__)
        said = Failed("internal", f"{type(error).__name__}: {error}"[:500])
    with sending, contextlib.suppress(OSError):
        channel.sendall(frame(Reply(ask.number, said)))


def _read(channel: socket.socket) -> Ask | None:
    head = _exactly(channel, LENGTH.size)
    if head is None or (length := LENGTH.unpack(head)[0]) > MAX_FRAME_BYTES:
        return None
    body = _exactly(channel, length)
    return None if body is None else msgspec.msgpack.decode(body, type=Ask)


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        block = channel.recv(size - len(parts))
        if not block:
            return None
        parts += block
    return bytes(parts)


def main(arguments: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the agent's to handle
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    engine = Engine(arguments[1])
    with socket.socket(fileno=int(arguments[0])) as channel, contextlib.suppress(OSError):
        serve(channel, engine)
    engine.end_all()
    sys.stderr.flush()
    os._exit(0)  # threads that wait for the engine must not keep the process


if __name__ == "__main__":
    main(sys.argv[1:])
