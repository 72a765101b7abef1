"""What a worker may keep on its device, and nothing beside it: the folder, its bounds, its end, and device files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.config import ServingSettings, StatePaths
from agent.installed import Installed
from agent.runtimes.caches import Caches
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.users import first_uid
from agent.sandbox import landlock
from agent.sandbox.bubblewrap import bubblewrap
from agent.sandbox.cage import Cages
from agent.sandbox.room import Room, room_for
from agent.slots import Slot, Slots
from agent.store import AgentStore
from support.built import Built, build, build_script, install

SERVING = ServingSettings(drain_s=3.0)


@pytest.fixture
def public(tmp_path: Path, state_dir: StatePaths) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    for folder in (state_dir.root, state_dir.slots):
        folder.chmod(0o711)


def held(module: Built) -> Installed:
    return Installed("iris", 1, module.sha256, 1, "d", verified=True)


async def load_once(runtime: ProcessRuntime, module: Built) -> str:
    worker = await runtime.load(held(module))
    try:
        ready = worker.ready
        assert ready is not None
        return ready.execution
    finally:
        await worker.kill()


def copies(state_dir: StatePaths, module: Built) -> list[Path]:
    return sorted((state_dir.root / "caches" / module.sha256[:32]).rglob("seal.json"))


@pytest.mark.usefixtures("public")
@pytest.mark.parametrize("isolation", ["off", "auto"])
async def test_a_confined_worker_keeps_an_optimised_copy_that_goes_with_its_slot(
    state_dir: StatePaths, agent_store: AgentStore, isolation: str
) -> None:
    settings = msgspec.structs.replace(SERVING, isolation=isolation)
    cages = await Cages.find(settings, first_uid(settings), groups=False)
    slots, module = Slots(state_dir.slots), build()
    slot = install(slots, module, state_dir.staging)
    runtime = ProcessRuntime(state_dir, settings, agent_store, slots, lambda stream, item: None, cages)
    try:
        await load_once(runtime, module)
        (seal,) = copies(state_dir, module)
        assert seal.stat().st_uid == (first_uid(settings) or os.geteuid())
        assert seal.parents[2].stat().st_mode & 0o777 == 0o700
        born = seal.stat().st_mtime_ns
        await load_once(runtime, module)
        assert [one.stat().st_mtime_ns for one in copies(state_dir, module)] == [born]
        weights = seal.with_name("weights.bin")
        weights.write_bytes(b"\xff" * weights.stat().st_size)
        await load_once(runtime, module)  # whose golden inputs would not agree
        assert copies(state_dir, module)[0].stat().st_mtime_ns != born
        slots.prune([])
        assert not slot.path.exists()
        runtime.tidy()
        assert list((state_dir.root / "caches").iterdir()) == []
    finally:
        runtime.close()


@pytest.mark.usefixtures("public")
async def test_code_of_a_module_gets_no_folder_and_neither_does_a_device_that_wants_none(
    state_dir: StatePaths, agent_store: AgentStore
) -> None:
    slots = Slots(state_dir.slots)
    script, model = build_script("def init(): pass\ndef predict(inputs): raise ValueError\n"), build()
    slot, plain = install(slots, script, state_dir.staging), install(slots, model, state_dir.staging)
    assert Caches(state_dir.root / "caches", 10).open(slot, 0) is None
    assert Caches(state_dir.root / "caches", 0).open(plain, 0) is None
    assert not (state_dir.root / "caches").exists()


@pytest.fixture
def plain(state_dir: StatePaths) -> Slot:
    return install(Slots(state_dir.slots), build(), state_dir.staging)


def test_a_folder_that_has_grown_too_large_is_emptied(state_dir: StatePaths, plain: Slot) -> None:
    caches = Caches(state_dir.root / "caches", 1)
    folder = caches.open(plain, 0)
    assert folder is not None
    (folder / "engine").mkdir()
    (folder / "engine" / "small").write_bytes(b"x" * 1000)
    assert caches.open(plain, 0) == folder
    assert (folder / "engine" / "small").exists()
    (folder / "engine" / "large").write_bytes(os.urandom(1024 * 1024))
    assert caches.open(plain, 0) == folder
    assert list(folder.iterdir()) == []


def test_the_next_worker_finds_no_folder_of_a_module_that_is_gone(state_dir: StatePaths, plain: Slot) -> None:
    caches = Caches(state_dir.root / "caches", 1)
    gone = state_dir.root / "caches" / ("0" * 32)
    gone.mkdir(parents=True)
    (gone / "engine").write_text("x")
    folder = caches.open(plain, 0)
    assert list((state_dir.root / "caches").iterdir()) == [folder]


def test_a_link_in_its_place_is_not_followed(state_dir: StatePaths, plain: Slot, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    (state_dir.root / "caches").mkdir()
    link = state_dir.root / "caches" / plain.path.name
    link.symlink_to(tmp_path / "precious")
    folder = Caches(state_dir.root / "caches", 1).open(plain, 0)
    assert folder == link
    assert not link.is_symlink()
    assert (tmp_path / "precious" / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_another_user_has_written_is_not_believed(state_dir: StatePaths, plain: Slot) -> None:
    caches = Caches(state_dir.root / "caches", 1)
    folder = caches.open(plain, 54_321)
    assert folder is not None
    (folder / "old").write_text("x")
    assert caches.open(plain, 54_322) == folder
    assert list(folder.iterdir()) == []
    assert folder.stat().st_uid == 54_322


ACTS = """
import json, os, socket, sys
from pathlib import Path
from agent.sandbox.confine import confine
from agent.sandbox.room import Room
order = json.loads(sys.argv[1])
cache, slot = Path(order["cache"]), Path(order["slot"])
room = Room(cache, 4096, tuple(map(Path, order["devices"])))
level = confine(slot, order["uid"], 0, room=room)
def moved():
    (cache / "a").write_text("x")
    os.replace(cache / "a", cache / "b")
def folder():
    (cache / "d").mkdir()
    (cache / "d" / "f").write_text("x")
    os.rename(cache / "d" / "f", cache / "g")
    (cache / "d").rmdir()
    os.unlink(cache / "g")
def large():
    with (cache / "large").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096): pass
acts = dict(
    moved=moved, folder=folder, read=lambda: (cache / "b").read_text(), list=lambda: os.listdir(cache),
    large=large, link=lambda: os.symlink("/etc", cache / "link"), hard=lambda: os.link(slot / "file", cache / "hard"),
    fifo=lambda: os.mkfifo(cache / "fifo"), out=lambda: os.rename(cache / "b", slot / "b"),
    beside=lambda: (cache.parent / "x").write_text("x"), slot=lambda: (slot / "x").write_text("x"),
    device=lambda: os.close(os.open("/dev/zero", os.O_RDWR)), other=lambda: os.close(os.open("/dev/full", os.O_RDWR)),
    limit=lambda: __import__("resource").setrlimit(1, (1 << 40, 1 << 40)),
)
said = {}
for name, act in acts.items():
    try:
        act()
        said[name] = "done"
    except (OSError, ValueError) as error:
        said[name] = "denied"
print(json.dumps([level, said]))
"""


@pytest.mark.parametrize("devices", [[], ["/dev/zero"]], ids=["no devices", "a device"])
def test_a_worker_writes_plain_files_in_its_folder_and_nothing_beside_it(tmp_path: Path, devices: list[str]) -> None:
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    uid = 54_321 if os.geteuid() == 0 else 0
    slot, cache = tmp_path / "slot", tmp_path / "caches" / "module"
    slot.mkdir()
    (slot / "file").write_text("x")
    cache.mkdir(parents=True)
    cache.parent.chmod(0o777)
    slot.chmod(0o777)
    if uid:
        os.chown(cache, uid, uid)
    order = json.dumps({"cache": str(cache), "slot": str(slot), "uid": uid, "devices": devices})
    run = subprocess.run([sys.executable, "-c", ACTS, order], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    level, said = json.loads(run.stdout)
    assert "landlock" in level
    allowed = {"moved", "folder", "read", "list", *(["device"] if devices else [])}
    assert said == {name: "done" if name in allowed else "denied" for name in said}
    assert (cache / "large").stat().st_size == 4096


def tree(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_an_accelerator_opens_its_device_files_where_they_are(tmp_path: Path) -> None:
    tree(
        tmp_path,
        "dev/nvidia0",
        "dev/nvidiactl",
        "dev/nvidia-uvm",
        "dev/apex_0",
        "dev/sda",
        "proc/driver/nvidia/version",
    )
    room = room_for(("cuda",), None, 5, tmp_path)
    assert {path.name for path in room.devices} == {"nvidia0", "nvidiactl", "nvidia-uvm"}
    assert [path.name for path in room.readable] == ["nvidia"]
    assert room.cache_bytes == 0
    assert [path.name for path in room_for(("edgetpu", "unheard-of"), None, 0, tmp_path).devices] == ["apex_0"]


def test_a_module_that_requires_none_or_one_that_is_not_there_gets_none(tmp_path: Path) -> None:
    tree(tmp_path, "dev/nvidia0", "dev/nvidiactl", "opt/intel/x")
    assert room_for((), None, 0, tmp_path).devices == ()
    assert room_for(("openvino",), None, 0, tmp_path) == Room()


def test_namespaces_show_the_folder_and_the_devices_and_no_more(tmp_path: Path) -> None:
    room = Room(tmp_path / "cache", 1, (Path("/dev/nvidia0"),), (Path("/sys/bus/pci/devices"),))
    command = bubblewrap("bwrap", tmp_path / "slot", 0, room=room)

    def shown(word: str) -> list[str]:
        return [command[at + 1] for at, said in enumerate(command) if said == word]

    assert shown("--bind-try") == [str(tmp_path / "cache")]
    assert shown("--dev-bind-try") == ["/dev/nvidia0"]
    assert "/sys/bus/pci/devices" in shown("--ro-bind-try")


def test_a_device_file_that_is_open_to_a_group_brings_that_group(tmp_path: Path) -> None:
    (tmp_path / "renderD128").touch()
    owner = os.stat(tmp_path / "renderD128").st_gid
    assert Room(devices=(tmp_path / "renderD128",)).groups == frozenset({owner} - {0})
