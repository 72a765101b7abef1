"""Every operation of the OpenAPI document, tried with what it allows and what it does not: nothing ends in a 5xx."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.initialise import free_ports, initialise
from support.serving import serving_hub

COMMAND = str(Path(sys.executable).with_name("schemathesis"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[HubPaths]:
    api, mqtt = free_ports(2)
    config = HubConfig(dev=True, api_port=api, mqtt_port=mqtt, requests_per_s=1e6, strangers_per_s=1e6)
    paths = asyncio.run(initialise(tmp_path / "hub", config))
    with serving_hub(paths):
        yield paths


def attempt(paths: HubPaths, folder: Path, examples: int, deadline_s: float, *options: str) -> str:
    """Schemathesis as a program of its own, with a seed, so that what it finds it finds again.

    Without the streams, which have no end; test_stream.py asks them for what they do not allow.
    """
    url = f"{HubConfig.load(paths.root).api_url}/api/v1/openapi.json"
    token = paths.operator_token.read_text().strip()
    arguments = [
        COMMAND, "run", url, f"--tls-verify={paths.server_ca_crt}", f"--header=Authorization: Bearer {token}",
        "--checks=not_a_server_error", f"--max-examples={examples}", "--seed=7", "--no-color",
        "--request-timeout=20", "--continue-on-failure", "--exclude-path-regex=/stream$", *options,
    ]  # fmt: skip
    # Where it keeps its examples; no settings of whoever runs the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SCHEMATHESIS_")}
    run = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=deadline_s, check=False
    )
    assert run.returncode == 0, run.stdout[-12_000:] + run.stderr[-2_000:]
    return run.stdout


@pytest.mark.timeout(240)
def test_no_operation_ends_in_a_server_error(served: HubPaths, tmp_path: Path) -> None:
    assert re.search(r"Tested: [1-9]", attempt(served, tmp_path, 8, 200, "--phases=fuzzing"))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_operation_ends_in_a_server_error_after_many_more_tries(served: HubPaths, tmp_path: Path) -> None:
    attempt(served, tmp_path, 300, 3500, "--phases=coverage,fuzzing,stateful")
