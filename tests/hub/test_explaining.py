"""Why a device does not run what it shall: the first thing that stands in the way, in words."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from cloud_hub.desired import Assignment
from cloud_hub.device_rows import Device
from cloud_hub.explaining import Part, coming, explained
from cloud_hub.rollouts.plan import Plan
from cloud_hub.rollouts.states import Execution, ExecutionState, Rollout, RolloutState
from modules.configuration import config_digest
from modules.messages import DeviceReport, ModuleReport, UpdateReport
from support.devices import PROFILE, make_report

NOW = 1_700_000_000.0
SHALL = Assignment("digits", 2, PROFILE, "r7")
RUNS = ModuleReport("digits", 1, "0" * 64, 1, "r6", "serving", True)


def device(report: DeviceReport | None, **changes: Any) -> Device:
    known = Device(
        "cam-1", PROFILE, {}, NOW - 9000, None, True, 5, NOW if report else None, report, seen_at=NOW, online_at=NOW
    )
    return msgspec.structs.replace(known, **changes)


def report(module: ModuleReport | None = RUNS, **changes: Any) -> DeviceReport:
    made = make_report("cam-1", director_version=5, modules=() if module is None else (module,))
    return msgspec.structs.replace(made, **changes)


FAILED = UpdateReport("failed", 5, ("r7",), 2, "no-space", "needs 90 MiB, has 12 MiB")
UNDER_WAY = UpdateReport("fetching", 5, ("r7",), 2, done_bytes=3, total_bytes=10)


@pytest.mark.parametrize(
    ("known", "cause", "text"),
    [
        (device(None), "never-reported", "has not reported since it was enrolled"),
        (device(report(), retired_at=NOW), "retired", "the device was retired"),
        (device(report(), profile="other"), "not-begun", "has not begun yet"),
        (
            device(report(), online=False, offline_at=NOW + 60), "offline",
            "the device is offline since 2023-11-14 22:14 UTC",
        ),
        (device(report(), online=False), "offline", "nothing was heard of the device since 2023-11-14 22:13 UTC"),
        (device(report(), director_version=6), "not-heard", "knows director version 5"),
        (device(report(current=UNDER_WAY)), "updating", "fetching, 30 % fetched, attempt 2"),
        (device(report(last=FAILED)), "update-failed", r"failed, attempt 2 \(no-space: needs 90 MiB, has 12 MiB\)"),
        (device(report(last=UpdateReport("failed", 4, ("r6",)))), "not-begun", "has not begun yet"),
        (device(report(None)), "not-begun", "has not begun yet"),
        (device(report(msgspec.structs.replace(RUNS, version=2, verified=False))), "probation", "its probation"),
        (device(report(msgspec.structs.replace(RUNS, version=2, state="failed"))), "module-failed", "does not run"),
    ],
)  # fmt: skip
def test_the_cause_is_the_first_thing_in_the_way(known: Device, cause: str, text: str) -> None:
    (found,) = explained(known, (SHALL,), ())
    assert found.cause == cause
    assert re.search(text, found.text), found.text


def test_a_module_for_another_profile_is_told() -> None:
    other = msgspec.structs.replace(SHALL, profile="jetson")
    (found,) = explained(device(report()), (other,), ())
    assert (found.cause, found.text) == (
        "wrong-profile", f"it is meant for jetson, and the device says that it is a {PROFILE}"
    )  # fmt: skip


CONFIGURED = msgspec.structs.replace(SHALL, config={"threshold": 0.4})
HAS, IS_TO_HAVE = config_digest({"threshold": 0.3}), config_digest({"threshold": 0.4})


def carried(config: int) -> Part:
    rollout = Rollout("r7", "digits", 0, "all", Plan(), RolloutState.RUNNING, NOW, config=config)
    return Part(rollout, Execution("cam-1", 0))


def configured(digest: str, **changes: Any) -> DeviceReport:
    module = msgspec.structs.replace(RUNS, version=2, config_sha256=digest)
    return report(module, **{"agent_version": "0.2.0", **changes})


def test_another_configuration_of_the_same_version_is_told_by_digest_and_revision() -> None:
    (found,) = explained(device(configured(HAS)), (CONFIGURED,), (carried(4),))
    assert (found.why, found.desired, found.reported, found.cause) == ("other-configuration", 2, 2, "not-begun")
    assert (found.desired_config, found.reported_config, found.revision) == (IS_TO_HAVE, HAS, 4)
    assert found.text.startswith(
        f"it runs with configuration {HAS[:12]}, and is to have configuration {IS_TO_HAVE[:12]} (revision 4): the "
    )


def test_a_device_without_the_configuration_that_a_version_kept_is_told_without_a_revision() -> None:
    (found,) = explained(device(configured(""), online=False), (CONFIGURED,), (carried(0),))
    assert (found.cause, found.revision) == ("offline", 0)
    assert found.text.startswith(
        f"it runs with no configuration, and is to have configuration {IS_TO_HAVE[:12]}: nothing was heard "
    )


@pytest.mark.parametrize("said", [configured(IS_TO_HAVE), configured("", agent_version="0.1.0")])
def test_the_same_configuration_and_agents_that_do_not_say_theirs_make_no_difference(said: DeviceReport) -> None:
    assert explained(device(said), (CONFIGURED,), (carried(4),)) == ()


def test_a_candidate_s_configuration_is_compared_with_its_own() -> None:
    beside = msgspec.structs.replace(CONFIGURED, role="candidate", mode="shadow", version=3)
    main = msgspec.structs.replace(RUNS, version=2, config_sha256=IS_TO_HAVE)
    shadow = msgspec.structs.replace(RUNS, version=3, config_sha256=HAS, mode="shadow")
    both = msgspec.structs.replace(report(main, agent_version="0.2.0"), modules=(main, shadow))
    (found,) = explained(device(both), (CONFIGURED, beside), ())
    assert (found.why, found.candidate, found.desired) == ("other-configuration", True, 3)


def test_a_module_that_nobody_asks_for_any_more_is_told() -> None:
    (found,) = explained(device(report()), (), ())
    assert (found.why, found.cause) == ("not-desired", "to-be-removed")


def test_a_device_as_it_shall_be_has_nothing_to_explain() -> None:
    fine = report(msgspec.structs.replace(RUNS, version=2))
    assert explained(device(fine, online=False), (SHALL,), ()) == ()


# --- what is coming -------------------------------------------------------------------------------------------------
def part(of: RolloutState, at: int, **execution: Any) -> Part:
    rollout = Rollout("r7", "digits", 2, "all", Plan(), of, NOW, group_index=at)
    return Part(rollout, Execution("cam-1", **{"group_index": 2, **execution}))


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (part(RolloutState.DRAFT, -1), "waits for r7 to be started"),
        (part(RolloutState.RUNNING, 0), "waits for group 3 of r7, which is not open yet; group 1 is"),
        (part(RolloutState.RUNNING, -1), "waits for group 3 of r7, which is not open yet"),
        (part(RolloutState.PAUSED, 2), "waits in group 3 of r7, which is paused; `mooring rollout status r7` says why"),
        (
            part(RolloutState.RUNNING, 2, ready_at=NOW + 60),
            "waits in group 3 of r7; it may begin at 2023-11-14 22:14 UTC",
        ),
        (
            part(RolloutState.RUNNING, 2, ready_at=NOW + 60, attempt=1),
            "waits in group 3 of r7; it is tried again at 2023-11-14 22:14 UTC",
        ),
        (part(RolloutState.RUNNING, 2), "waits for its turn in group 3 of r7"),
        (
            part(RolloutState.RUNNING, 2, state=ExecutionState.UPDATING, reason_key="fetching", deadline_at=NOW),
            "under way in group 3 of r7: updating, fetching, until 2023-11-14 22:13 UTC",
        ),
    ],
)  # fmt: skip
def test_what_a_rollout_waits_for_is_told(one: Part, text: str) -> None:
    (found,) = coming([one], NOW)
    assert found.text == text


def test_of_what_is_over_nothing_is_coming() -> None:
    over = [part(RolloutState.FINISHED, 2), part(RolloutState.RUNNING, 2, state=ExecutionState.VERIFIED)]
    assert coming(over, NOW) == ()


def test_an_execution_that_failed_explains_what_the_device_no_longer_tells() -> None:
    failed = part(
        RolloutState.RUNNING, 2, state=ExecutionState.FAILED, reason_key="no-space", reason="the disk was full"
    )
    (found,) = explained(device(report()), (SHALL,), [failed])
    assert (found.cause, found.text) == ("update-failed", "in r7: failed, no-space: the disk was full")
