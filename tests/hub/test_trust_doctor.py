"""What `mooring-hub doctor` says about the life of what was signed offline."""

import time
from pathlib import Path

import pytest

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.doctor import Finding, examine
from cloud_hub.initialise import free_ports, initialise

DAY = 86_400.0


@pytest.fixture
async def hub(tmp_path: Path) -> HubPaths:
    """A hub that holds no offline key, made now."""
    api, mqtt = free_ports(2)
    config = HubConfig(api_host="127.0.0.1", api_port=api, mqtt_host="127.0.0.1", mqtt_port=mqtt, publisher="acme")
    return await initialise(tmp_path / "hub", config, tmp_path / "keys")


def finding(hub: HubPaths, days: float) -> Finding:
    found = examine(hub, lambda: time.time() + days * DAY)
    return next(one for one in found if one.subject == "signed metadata")


def test_weeks_before_roots_targets_or_publishers_end_doctor_says_so(hub: HubPaths) -> None:
    assert "roots, targets and publishers last" in finding(hub, 1).text
    soon = finding(hub, 365 - 40)
    assert soon.state == "note"
    for role in ("image root version 1 ends in", "image targets", "image acme", "director root"):
        assert role in soon.text


def test_what_has_expired_is_a_problem(hub: HubPaths) -> None:
    gone = finding(hub, 366)
    assert gone.state == "problem"
    assert "HAS EXPIRED" in gone.text


def test_a_missing_database_is_not_made_by_looking(hub: HubPaths) -> None:
    hub.database.unlink()
    assert finding(hub, 1).state == "problem"
    assert not hub.database.exists()
