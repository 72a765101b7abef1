"""One bad camera, one bad site, one bad version and a changed world look different, and each is one alert."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from cloud_hub.blobs import Blobs
from cloud_hub.events import Events
from cloud_hub.monitoring.alert_book import Common
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.population import MAX_LOOKED, Population, choose
from cloud_hub.monitoring.spread import in_common
from cloud_hub.store.engine import Store
from modules.windows import pack_joint
from support.clock import SetClock
from support.monitoring import LOOK_S, Array, Monitored, build_module, make_window
from support.watched import START, Fleet, know_devices

FEATURES = 3
NAMES = tuple(f"cam-{place}" for place in range(9))
# Three sites of three; a version runs on one camera of each site.
TAGS = {
    name: {"site": ("north", "south", "west")[place // 3], "firmware": "2" if place % 3 == 0 else "1"}
    for place, name in enumerate(NAMES)
}


@pytest.fixture
async def fleet(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Fleet:
    hub = Monitored(store, blobs, events, clock, group_by=("site", "firmware", "profile"))
    await know_devices(store, TAGS)
    training = np.random.default_rng(41).normal(size=(4000, FEATURES))
    return Fleet(hub, await build_module(store, blobs, training), NAMES, FEATURES)


def shifted(fleet: Fleet, names: list[str], shift: float, feature: int = 1) -> dict[str, Callable[[], Array | None]]:
    return dict.fromkeys(names, lambda: fleet.rows(shift, feature))


def where(**tags: str) -> list[str]:
    return [name for name, own in TAGS.items() if tags.items() <= own.items()]


async def test_one_bad_camera_is_one_alert_of_the_camera(fleet: Fleet) -> None:
    await fleet.live(4)
    await fleet.live(4, shifted(fleet, ["cam-4"], 1.0))
    (alert,) = await fleet.open()
    assert (alert.scope, alert.severity) == ("device:cam-4", "critical")


async def test_one_bad_site_is_one_alert_of_the_site_with_its_devices(fleet: Fleet) -> None:
    await fleet.live(4)
    await fleet.live(5, shifted(fleet, where(site="south"), 0.8))
    (alert,) = await fleet.open()
    assert alert.scope == "group:site=south"
    assert [share.device for share in alert.evidence.devices[:3]] != []
    assert {share.device for share in alert.evidence.devices} == set(where(site="south"))
    assert alert.evidence.since == pytest.approx(START + 4 * 60, abs=60 * 2)


async def test_one_bad_version_is_one_alert_of_the_version_though_its_devices_are_at_all_sites(fleet: Fleet) -> None:
    await fleet.live(4)
    await fleet.live(5, shifted(fleet, where(firmware="2"), 0.8))
    (alert,) = await fleet.open()
    assert alert.scope == "group:firmware=2"


async def test_a_changed_world_is_one_alert_of_the_fleet_and_no_storm(fleet: Fleet) -> None:
    await fleet.live(4)
    await fleet.live(5, shifted(fleet, list(NAMES), 0.8))
    (alert,) = await fleet.open()
    assert (alert.scope, alert.evidence.affected) == ("fleet", len(NAMES))
    opened = [event for event in await fleet.hub.events.list(kind="alert.opened") if event.details["parent"] is None]
    assert len(opened) == 1


async def test_what_had_an_alert_of_its_own_is_attached_to_the_wider_one_and_let_go_after_it(fleet: Fleet) -> None:
    await fleet.live(4)
    await fleet.live(3, shifted(fleet, ["cam-4"], 1.0))
    (own,) = await fleet.open()
    await fleet.live(4, shifted(fleet, list(NAMES), 1.0))
    (wide,) = await fleet.open()
    assert wide.scope == "fleet"
    detail = await fleet.hub.alerts.detail(wide.id)
    assert own.id in [child.id for child in detail.children]
    await fleet.live(7, shifted(fleet, ["cam-4"], 1.0))
    (left,) = await fleet.open()
    assert (left.id, left.scope, left.parent) == (own.id, "device:cam-4", None)
    history = [change.change for change in (await fleet.hub.alerts.detail(own.id)).history]
    assert history == ["opened", "attached", "reopened"]


async def test_what_an_alert_speaks_for_ends_with_it_when_somebody_ends_it(fleet: Fleet) -> None:
    await fleet.live(4)
    await fleet.live(3, shifted(fleet, ["cam-4"], 1.0))
    (own,) = await fleet.open()
    await fleet.live(4, shifted(fleet, list(NAMES), 1.0))
    (wide,) = await fleet.open()
    await fleet.hub.alerts.resolve(wide.id, "ann", "the season")
    assert await fleet.open("", attached=True) == []
    child = await fleet.hub.alerts.detail(own.id)
    assert (child.alert.evidence.resolution, child.history[-1].comment) == ("by-hand", f"with alert {wide.id}")
    await fleet.live(3)
    assert await fleet.open("", attached=True) == []


async def test_a_camera_with_a_fault_of_its_own_is_not_hidden_by_a_changed_world(fleet: Fleet) -> None:
    await fleet.live(4)
    broken = shifted(fleet, ["cam-7"], 3.0, feature=2)
    await fleet.live(5, shifted(fleet, [name for name in NAMES if name != "cam-7"], 0.8) | broken)
    found = {(alert.kind, alert.scope) for alert in await fleet.open("")}
    # Three standard deviations are out of range as well: bad data of that camera speaks for its drift.
    assert found == {("drift", "fleet"), ("quality", "device:cam-7")}


async def test_a_device_with_a_million_calm_rows_does_not_hide_a_change_of_all_others(fleet: Fleet) -> None:
    heavy = {"cam-0": lambda: fleet.rows(number=50_000)}
    await fleet.live(4, heavy)
    # Too little for each of them to alarm by itself.
    await fleet.live(8, shifted(fleet, list(NAMES[1:]), 0.35) | heavy)
    assert "fleet" in {alert.scope for alert in await fleet.open()}


async def test_a_device_with_a_million_drifted_rows_does_not_speak_for_all_others(fleet: Fleet) -> None:
    await fleet.live(4)
    await fleet.live(4, {"cam-0": lambda: fleet.rows(1.0, number=50_000)})
    found = {(alert.kind, alert.scope) for alert in await fleet.open("", attached=True)}
    assert found == {("quality", "device:cam-0"), ("drift", "device:cam-0")}  # the flood speaks for the drift


async def test_a_bad_camera_that_is_thinned_is_taken_out_whole_with_its_joint_sums(fleet: Fleet) -> None:
    await _together(fleet, 4, 0.0)
    await _together(fleet, 5, 0.6)
    assert {(alert.kind, alert.scope) for alert in await fleet.open("")} == {("drift", "device:cam-0")}
    opened = await fleet.hub.events.list(kind="alert.opened")
    assert {event.details["scope"] for event in opened} == {"device:cam-0"}


async def _together(fleet: Fleet, looks: int, change: float) -> None:
    """Looks in which cam-0 sends more than its share, with joint sums that its change has moved."""
    joint = fleet.built.profile.joint
    clock = fleet.hub.clock
    assert joint is not None
    assert isinstance(clock, SetClock)
    for _ in range(looks):
        for device in fleet.names:
            number, mean = (400, change) if device == "cam-0" else (100, 0.0)
            window = make_window(fleet.built, fleet.rows(mean, number=number), clock())
            sums = fleet.random.normal(mean * number, number**0.5, size=joint.dimensions).tolist()
            await fleet.hub.send(device, msgspec.structs.replace(window, joint=pack_joint(number, sums)))
        await fleet.hub.alerts.run_due()
        clock.advance(LOOK_S)


def test_what_the_devices_behind_an_alert_share_and_others_do_not_is_said() -> None:
    groups = {name: tuple(f"{key}={value}" for key, value in own.items()) for name, own in TAGS.items()}
    people = Population(dict.fromkeys(NAMES, 100), groups, ("site", "firmware"))
    fleet = Group("a" * 64, "*")
    assert in_common(where(site="south"), fleet, people) == (Common("site=south", 3, 3, 0, 6),)
    # One of another site beside them: four in five are not most any more, where there are four.
    assert in_common([*where(site="south"), "cam-1"], fleet, people) == ()
    assert in_common(["cam-4"], fleet, people) == ()
    assert in_common(NAMES, fleet, people) == ()


def test_of_a_large_fleet_few_devices_are_looked_at_and_always_the_same() -> None:
    members = [f"cam-{place:05d}" for place in range(10_000)]
    suspects, heavy = members[5000:5500], members[:3]
    chosen = choose(members, suspects, heavy)
    assert len(chosen.all) <= MAX_LOOKED
    assert set(heavy) <= set(chosen.all)
    assert len(set(suspects) & set(chosen.all)) >= 195
    assert choose(list(reversed(members)), suspects, heavy) == chosen
    # The draw speaks for all: it does not lean to those that are known for something.
    assert len(set(suspects) & set(chosen.drawn)) < 20
    small = choose(members[:50], suspects, heavy)
    assert (len(small.drawn), small.others) == (50, ())
