"""Talks to the engine beside the hub: `python -m cloud_hub.images.engine ADDRESS WORK TAG TARGET NETWORK`.

Loads WORK/base.tar, runs WORK/Dockerfile on it, saves the result to TARGET, and removes both images. What the steps
print goes to standard output; exit status 3 is for an engine that is not reached. Started by `images.steps`.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tarfile
from pathlib import Path

import docker
import docker.errors
import requests.exceptions

TIMEOUT_S = 600
UNREACHED = 3


def main(arguments: list[str]) -> int:
    address, work, tag, target, network = arguments
    try:
        with docker.APIClient(address, version="auto", timeout=TIMEOUT_S) as client:
            return _build(client, Path(work), tag, Path(target), network)
    except docker.errors.APIError as error:
        sys.stdout.write(f"{error.explanation or error}\n")
        return 1
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        sys.stdout.write(f"{error}\n")
        return UNREACHED


def _build(client: docker.APIClient, work: Path, tag: str, target: Path, network: str) -> int:
    try:
        with (work / "base.tar").open("rb") as base:
            for said in client.load_image(base, quiet=True):
                if said.get("error"):
                    sys.stdout.write(f"{said['error']}\n")
                    return 1
        context = _context((work / "Dockerfile").read_bytes())
        steps = client.build(
            fileobj=context, custom_context=True, tag=f"{tag}:built", network_mode=network, rm=True, forcerm=True,
            nocache=True, decode=True,
        )  # fmt: skip
        for said in steps:
            sys.stdout.write(said.get("stream") or said.get("error") or "")
            if said.get("error"):
                return 1
        with target.open("wb") as file:
            for block in client.get_image(f"{tag}:built"):
                file.write(block)
    finally:
        for name in ("built", "base"):
            with contextlib.suppress(docker.errors.APIError):
                client.remove_image(f"{tag}:{name}")
    return 0


def _context(dockerfile: bytes) -> io.BytesIO:
    """A build's context of one file: steps see nothing of the hub's."""
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        tar.addfile(entry, io.BytesIO(dockerfile))
    body.seek(0)
    return body


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
