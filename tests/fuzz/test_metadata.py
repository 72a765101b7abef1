"""Metadata that is well signed and makes no sense: whoever holds the hub's keys can only be refused, or be obeyed.

One value somewhere in one role is replaced by something odd, and signed properly. Nothing but a TrustError may come of
it, and what the device is told to run is signed by the publisher all the same. Bytes that were changed without a
signature never tell it anything new.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import TrustError
from agent.trust import Desired, Trust
from support.repository import HARDWARE, PUBLISHER, World
from support.uptane import seal

ROLES = [("director", "timestamp"), ("director", "snapshot"), ("director", "targets")] + [
    ("image", role) for role in ("timestamp", "snapshot", "targets", PUBLISHER)
]
ODD: st.SearchStrategy[object] = st.one_of(
    st.sampled_from([None, True, -1, 0, 2**31, 2**63, 2**200, "", "\0", "..", "x" * 5000, [], {}, [[]], {"": {}}]),
    st.integers(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
)


class Device:
    """A device with its world, fresh for every example."""

    def __init__(self, folder: Path) -> None:
        self.world = World()
        self.world.write_roots(folder)
        self.world.install(counter=5)
        self.trust = Trust("cam-17", HARDWARE, folder, folder / "metadata", time.time)

    def refresh(self) -> Desired | TrustError:
        try:
            return self.trust.refresh({}, self.world.get)
        except TrustError as error:
            return error


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, as a path of keys and indices."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*path, key))


def put(value: Any, path: tuple[Any, ...], odd: object) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = odd


def shown(desired: Desired) -> set[tuple[str, int, int]]:
    return {(module.name, module.version, module.release_counter) for module in desired.modules}


def spoil(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        device = Device(Path(folder))
        repository, role = data.draw(st.sampled_from(ROLES))
        repo = device.world.director if repository == "director" else device.world.image
        signed = repo.metadata(role).to_dict()["signed"]
        path, odd = data.draw(st.sampled_from(list(places(signed)))), data.draw(ODD)
        before = data.draw(st.booleans())
        if before:
            device.refresh()
        repo.publish()
        seal(repo, role, lambda signed: put(signed, path, odd))
        got = device.refresh()
        if isinstance(got, Desired):
            assert shown(got) <= {("digits", 1, 5)}


def damage(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        device = Device(Path(folder))
        trusted = device.refresh() if data.draw(st.booleans()) else None
        device.world.publish()
        file = data.draw(st.sampled_from(sorted(name for name in device.world.files if name[0] != "blob")))
        good = device.world.files[file]
        at, end = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(1, 4))
        device.world.files[file] = good[:at] + data.draw(st.binary(max_size=4)) + good[at + end :]
        got = device.refresh()
        if isinstance(got, Desired):
            assert shown(got) == {("digits", 1, 5)}
        assert trusted is None or isinstance(trusted, Desired)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_well_signed_nonsense_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    spoil(data)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_metadata_with_changed_bytes_never_says_something_else(data: st.DataObject) -> None:
    damage(data)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("act", [spoil, damage])
@given(data=st.data())
@settings(max_examples=5_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_metadata_for_long(act: Any, data: st.DataObject) -> None:
    act(data)
