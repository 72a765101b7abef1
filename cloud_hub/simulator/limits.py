"""How many files this process may open: one for each device. Called by `run`."""

from __future__ import annotations

import resource

from cloud_hub.operator.errors import FileError

BESIDE = 128  # what is open beside the devices


def raise_file_limit(devices: int) -> None:
    """Raises FileError `too-few-files` where the system does not let us, saying what to do."""
    need = devices + BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < need:
        most = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft != resource.RLIM_INFINITY and soft < need:
        raise FileError(
            "too-few-files",
            f"{devices} devices need {need} open files, and this system allows {soft}: raise the hard limit "
            f"(`ulimit -Hn`, LimitNOFILE= of a systemd unit), or share the devices among several processes with "
            "--prefix; nothing was started",
        )
