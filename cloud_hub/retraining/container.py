"""A training command in a container: `python -m cloud_hub.retraining.container SPECIFICATION`.

The engine is asked for a container with the run's folders mounted and nothing else of this machine, without a network
unless the plan says so, without privileges; it is removed at the end, whatever happens: the guard's SIGTERM is heard.
The command line for `executing` is made by `in_container`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import Any, Final

import msgspec

from cloud_hub.retraining.executing import Folders
from cloud_hub.retraining.plan import Training

TIMEOUT_S: Final = 60
ROOT: Final = "/mooring"
UNREACHED: Final = 3


class Specification(msgspec.Struct, frozen=True):
    """What the container is to be. `mounts` are folders here by folders there, and whether they may be written."""

    engine: str
    name: str
    image: str
    command: tuple[str, ...]
    mounts: dict[str, tuple[str, bool]]
    environment: dict[str, str]
    network: bool
    user: str


def in_container(engine: str, training: Training, folders: Folders, run: str, plan: str) -> tuple[str, ...]:
    """The command that runs the training's command in its image."""
    mounts = {
        str(folders.dataset): (f"{ROOT}/dataset", False),
        str(folders.base_model): (f"{ROOT}/base-model", False),
        str(folders.output): (f"{ROOT}/output", True),
        str(folders.work): (f"{ROOT}/code", False),
    }
    environment = {
        "MOORING_DATASET": f"{ROOT}/dataset",
        "MOORING_BASE_MODEL": f"{ROOT}/base-model",
        "MOORING_OUTPUT": f"{ROOT}/output",
        "MOORING_RUN": run,
        "MOORING_PLAN": plan,
    }
    specification = Specification(
        engine, f"mooring-{run}", training.image, training.command, mounts, environment, training.network,
        f"{os.getuid()}:{os.getgid()}",
    )  # fmt: skip
    text = msgspec.json.encode(specification).decode()
    return (sys.executable, "-P", "-m", "cloud_hub.retraining.container", text)


def main(arguments: list[str]) -> int:
    import docker
    import docker.errors
    import requests.exceptions

    wanted = msgspec.json.decode(arguments[0], type=Specification)
    signal.signal(signal.SIGTERM, _stop)
    try:
        with contextlib.closing(docker.APIClient(wanted.engine, version="auto", timeout=TIMEOUT_S)) as client:
            return _run(client, wanted)
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        sys.stdout.write(f"container engine {wanted.engine}: {error}\n")
        return UNREACHED


def _run(client: Any, wanted: Specification) -> int:  # noqa: ANN401 - docker has no types
    import docker.errors

    binds = {here: {"bind": there, "mode": "rw" if write else "ro"} for here, (there, write) in wanted.mounts.items()}
    limits = client.create_host_config(
        binds=binds,
        network_mode=None if wanted.network else "none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
    )
    with contextlib.suppress(docker.errors.NotFound):
        client.remove_container(wanted.name, force=True)  # of this run, left by one that was killed
    made = client.create_container(
        wanted.image, list(wanted.command), name=wanted.name, environment=wanted.environment, host_config=limits,
        working_dir=f"{ROOT}/code", user=wanted.user,
    )  # fmt: skip
    try:
        client.start(made)
        for piece in client.logs(made, stream=True, follow=True):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return int(client.wait(made)["StatusCode"])
    finally:
        with contextlib.suppress(docker.errors.APIError):
            client.remove_container(made, force=True)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
