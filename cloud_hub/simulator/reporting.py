"""The signed report of a simulated device, true or not. Called by `device`."""

from __future__ import annotations

import msgspec

from cloud_hub import __version__
from cloud_hub.simulator.identity import Identity
from cloud_hub.simulator.profile import Lie
from cloud_hub.simulator.state import DeviceState
from firmware_profiles.profile import DeviceProfile
from modules.messages import DeviceReport, ModuleReport, SignedReport, encode, encode_report
from modules.vitals import LinkQuality, Vitals

BEYOND = 2**63  # what a database's largest integer does not hold
NEVER_BUILT = "f" * 64


def compose(
    device: str, state: DeviceState, hardware: DeviceProfile, boot: str, at: float, lie: Lie, connections: int = 1
) -> DeviceReport:
    """What the device says of itself, with the state's counter."""
    return DeviceReport(
        device=device,
        counter=state.counter + (BEYOND if lie == "counter" else 0),
        at=at,
        agent_version=__version__,
        profile=hardware,
        director_version=state.director_version,
        image_version=state.image_version,
        modules=tuple(map(_claimed, state.modules)) if lie == "unassigned" else state.modules,
        current=state.current,
        last=state.last,
        boot=boot,
        vitals=_vitals(state.counter, connections),
    )


def signed(report: DeviceReport, identity: Identity) -> bytes:
    """The message on up/state."""
    body = encode_report(report)
    return encode(SignedReport(body, identity.sign(body)))


def _vitals(counter: int, connections: int) -> Vitals:
    """Of a machine that is well; they move, as they do everywhere."""
    return Vitals(
        uptime_s=60.0 * counter,
        disk_mib=29_000,
        disk_free_mib=21_000 - counter % 1000,
        memory_free_mib=1200 + counter % 37,
        load=0.2 + counter % 7 / 10,
        temperature_c=48.0 + counter % 11,
        link=LinkQuality(connections - 1, 21.0 + counter % 5, 900 * counter, 300 * counter),
    )


def _claimed(module: ModuleReport) -> ModuleReport:
    """As if a version ran that nobody has built."""
    return msgspec.structs.replace(module, version=module.version + 1, manifest_sha256=NEVER_BUILT, verified=True)
