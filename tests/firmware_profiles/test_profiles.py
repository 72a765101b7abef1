"""Profiles: why a module does not fit, and the catalogue of devices."""

from pathlib import Path

import pytest

from firmware_profiles.catalog import CatalogError, built_in, load
from firmware_profiles.profile import Accelerator, DeviceProfile, Requirements, why_not

pi = DeviceProfile("raspberry-pi-4", "aarch64", memory_mib=1900, agent_version="0.1.0")


def test_a_module_that_asks_for_nothing_fits() -> None:
    assert why_not(Requirements(), pi) == []


def test_every_unmet_requirement_is_named_with_what_was_expected_and_found() -> None:
    requires = Requirements(
        arch=("x86_64",),
        os=("linux",),
        hardware_ids=("generic-x86_64",),
        accelerators=("cuda",),
        memory_mib=4000,
        agent_version="0.2.0",
    )
    reasons = {reason.key: str(reason) for reason in why_not(requires, pi)}
    assert reasons == {
        "arch": "arch: expected x86_64, got aarch64",
        "hardware_id": "hardware_id: expected generic-x86_64, got raspberry-pi-4",
        "memory_mib": "memory_mib: expected at least 4000, got 1900",
        "agent_version": "agent_version: expected at least 0.2.0, got 0.1.0",
        "accelerator": "accelerator: expected cuda, got none",
    }


def test_unknown_memory_refuses_nothing() -> None:
    assert why_not(Requirements(memory_mib=10**6), DeviceProfile("generic-x86_64", "x86_64")) == []


def test_libraries_for_one_python_run_on_no_other_and_an_unknown_one_refuses_nothing() -> None:
    requires = Requirements(python=("3.11",))
    known, other, unknown = (DeviceProfile("pi", "aarch64", python=python) for python in ("3.11", "3.13", ""))
    assert why_not(requires, known) == why_not(requires, unknown) == []
    assert [str(reason) for reason in why_not(requires, other)] == ["python: expected 3.11, got 3.13"]


def test_an_accelerator_of_the_wanted_kind_fits() -> None:
    jetson = DeviceProfile("jetson-orin-nano", "aarch64", accelerators=(Accelerator("cuda"),))
    assert why_not(Requirements(accelerators=("cuda",)), jetson) == []


def test_the_catalogue_knows_the_devices_of_the_design() -> None:
    known = built_in()
    assert {"generic-x86_64", "raspberry-pi-4", "jetson-orin-nano", "kria-kv260", "pynq-z2"} <= known.keys()
    assert all(profile.name == name for name, profile in known.items())


def test_a_user_folder_adds_and_replaces(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[my-board]\narch = "aarch64"\n[pynq-z2]\narch = "armv7l"\nmemory_mib = 1\n')
    profiles = load(tmp_path)
    assert profiles["my-board"].arch == "aarch64"
    assert profiles["pynq-z2"].memory_mib == 1


@pytest.mark.parametrize("text", ["[x]\n", "[x]\narch = 3\n", "not toml", '["Bad Name"]\narch = "x"\n'])
def test_a_broken_profile_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken.toml").write_text(text)
    with pytest.raises(CatalogError, match=r"broken\.toml"):
        load(tmp_path)
