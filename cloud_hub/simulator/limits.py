"""How many files this process may open: one for each device. Called by `run`."""

from __future__ import annotations

import resource

from cloud_hub.operator.errors import FileError

BESIDE = 128  # what is open beside the devices
_UNLIMITED = 2**62


def raise_file_limit(devices: int) -> None:
    """Raises FileError `too-few-files` where the system does not let us, saying what to do."""
    need = devices + BESIDE
    soft, hard = (_UNLIMITED if one == resource.RLIM_INFINITY else one for one in _limits())
    if hard < need:
        raise FileError(
            "too-few-files",
            f"{devices} devices need {need} open files, and this system allows {hard}: raise the hard limit "
            f"(`ulimit -Hn`, LimitNOFILE= of a systemd unit), or share the devices among several processes with "
            "--prefix; nothing was started",
        )
    if soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, _limits()[1]))


def _limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)
