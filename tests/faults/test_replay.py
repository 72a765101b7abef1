"""What a power cut may leave of known operations; and that the layer sees all that Python and SQLite do to a disk."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from faults.replay import SECTOR, Disk, Loss
from faults.shim import Fault, Kind, Mode, Operation, build, environment, operations

Run = Callable[..., "subprocess.CompletedProcess[str]"]
ALL = (None, *Loss)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A watched folder with one durable file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "old").write_text("as it was")
    return folder


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def run(library: Path, root: Path, journal: Path) -> Run:
    """Runs Python lines in the watched folder, in a process of its own under the layer."""

    def start(source: str, fault: Fault | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", f"import os, sqlite3, shutil, sys\nfrom pathlib import Path\n{source}"],
            env=environment(library, root, journal, fault or Fault()), cwd=root, timeout=30,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return start


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kinds(done: Sequence[Operation]) -> list[Kind]:
    return [one.kind for one in done]


def left(before: Disk, journal: Path, target: Path, loss: Loss | None, seed: int = 0) -> dict[str, bytes]:
    """What stands in the folder after the journal and a cut."""
    before.apply(operations(journal))
    before.write(target, loss, seed)
    return contents(target)


WRITE_DURABLY = """
with open("new.tmp", "wb") as file:
    file.write(b"x" * 2000)
    file.flush()
    os.fsync(file.fileno())
os.replace("new.tmp", "old")
folder = os.open(".", os.O_RDONLY)
os.fsync(folder)
"""
RENAME_UNSYNCED = """
Path("new.tmp").write_bytes(b"y" * 2000)
os.replace("new.tmp", "old")
"""


@pytest.mark.parametrize("loss", ALL)
def test_a_file_written_synced_renamed_and_its_folder_synced_outlives_every_cut(
    loss: Loss | None, run: Run, root: Path, journal: Path, tmp_path: Path
) -> None:
    disk = Disk(root)
    assert run(WRITE_DURABLY).returncode == 0
    assert left(disk, journal, tmp_path / "after", loss) == {"old": b"x" * 2000}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (None, {"old": b"y" * 2000}),
        (Loss.STRICT, {"old": b"as it was"}),
        (Loss.DATA, {"old": b"as it was"}),
        (Loss.NAMES, {"old": b""}),  # what ext4 was scolded for
        (Loss.TORN, {"old": b"y" * (2 * SECTOR) + bytes(2000 - 2 * SECTOR)}),
    ],
)
def test_a_file_renamed_before_it_was_synced_may_be_old_empty_or_torn(
    loss: Loss | None, expected: dict[str, bytes], run: Run, root: Path, journal: Path, tmp_path: Path
) -> None:
    disk = Disk(root)
    assert run(RENAME_UNSYNCED).returncode == 0
    assert left(disk, journal, tmp_path / "after", loss) == expected


def test_by_chance_every_mix_of_sectors_and_names_can_be_left(
    run: Run, root: Path, journal: Path, tmp_path: Path
) -> None:
    before = contents(root)
    disk = Disk(root)
    run(RENAME_UNSYNCED)
    disk.apply(operations(journal))
    found = []
    for seed in range(20):
        disk.write(tmp_path / str(seed), Loss.SOME, seed)
        found.append(contents(tmp_path / str(seed)))
    assert before in found
    assert len({str(each) for each in found}) > 3


def test_links_folders_and_removals_come_back_or_stay_away_with_their_folders_sync(
    run: Run, root: Path, journal: Path, tmp_path: Path
) -> None:
    disk = Disk(root)
    run(
        "os.mkdir('a'); os.link('old', 'a/second'); f = os.open('a', os.O_RDONLY); os.fsync(f)\n"
        "g = os.open('.', os.O_RDONLY); os.fsync(g); os.unlink('old'); os.symlink('a', 'to-a'); shutil.rmtree('a')"
    )
    assert contents(root) == {}
    disk.apply(operations(journal))
    disk.write(tmp_path / "after", Loss.STRICT)
    assert contents(tmp_path / "after") == {"old": b"as it was", "a/second": b"as it was"}
    assert (tmp_path / "after/a/second").stat().st_nlink == 2


def test_a_folder_with_the_number_of_a_removed_file_is_synced_for_itself(root: Path, tmp_path: Path) -> None:
    number = (root / "old").stat().st_ino

    def did(place: int, kind: Kind, path: Path, inode: int = 0) -> Operation:
        return Operation(place, kind, True, 0o755, inode, 0, 0, str(path), "", b"")

    disk = Disk(root)
    disk.apply([
        did(1, Kind.UNLINK, root / "old"), did(2, Kind.MKDIR, root / "new"), did(3, Kind.CREATE, root / "new/file", 7),
        did(4, Kind.SYNC, root / "new", number), did(5, Kind.SYNC, root, 1),
    ])  # fmt: skip
    disk.write(tmp_path / "after", Loss.STRICT)
    assert contents(tmp_path / "after") == {"new/file": b""}


def test_everything_done_is_in_the_journal_byte_for_byte(run: Run, root: Path, journal: Path, tmp_path: Path) -> None:
    disk = Disk(root)
    ended = run(
        f"elsewhere = {str(tmp_path / 'elsewhere')!r}\n"
        "db = sqlite3.connect('db'); db.execute('pragma journal_mode = wal'); db.execute('create table t(x)')\n"
        "for i in range(50): db.execute('insert into t values(?)', (bytes(3000),)); db.commit()\n"
        "shutil.copyfile('db', 'copy'); shutil.copytree('.', elsewhere); os.truncate('copy', 5000)\n"
        "f = open('log', 'ab'); f.write(b'one'); f.flush(); f.write(b'two'); f.close()\n"
        "h = os.open('parts', os.O_RDWR | os.O_CREAT); os.pwrite(h, b'end', 4000); os.writev(h, [b'be', b'gin'])\n"
        "os.pwritev(h, [b'mid', b'dle'], 100); os.ftruncate(h, 4001); os.posix_fallocate(h, 0, 6000)\n"
        "os.chmod('log', 0o400); os.rename('log', 'renamed'); open('gone', 'w').close(); os.remove('gone')\n"
        "os._exit(0)"
    )
    assert ended.returncode == 0, ended.stderr
    real = {name: data for name, data in contents(root).items() if not name.endswith("-shm")}
    assert left(disk, journal, tmp_path / "after", None) == real
    assert not any("elsewhere" in one.path for one in operations(journal))


def test_a_transaction_that_sqlite_called_committed_outlives_every_cut(
    run: Run, root: Path, journal: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(root / "db")) as made:
        made.execute("pragma journal_mode = wal")
        made.execute("create table t(x)")
    disk = Disk(root)
    run(
        "db = sqlite3.connect('db', isolation_level=None); db.execute('pragma synchronous = full')\n"
        "for i in range(9): db.execute('insert into t values(?)', (i,))\n"
        "os._exit(0)"
    )
    disk.apply(operations(journal))
    for loss in Loss:
        disk.write(tmp_path / loss, loss, 3)
        with closing(sqlite3.connect(tmp_path / loss / "db")) as after:
            assert after.execute("select count(*) from t").fetchone() == (9,)


@pytest.mark.parametrize(("mode", "done"), [(Mode.KILL_BEFORE, 2), (Mode.KILL_AFTER, 3)])
def test_the_process_is_killed_before_or_after_the_chosen_operation(
    mode: Mode, done: int, run: Run, root: Path, journal: Path
) -> None:
    ended = run("for i in range(9): os.mkdir(str(i))", Fault(mode, 3))
    assert ended.returncode == -signal.SIGKILL
    assert sorted(path.name for path in root.iterdir()) == [*(str(i) for i in range(done)), "old"]
    assert [one.number for one in operations(journal)] == list(range(1, done + 1))


@pytest.mark.parametrize(
    ("mode", "fails"),
    [
        (Mode.FULL, "28 write, 28 mkdir, -"),
        (Mode.READ_ONLY, "30 write, 30 mkdir, 30 unlink"),
        (Mode.BROKEN, "5 write, 5 mkdir, 5 unlink"),
    ],
)
def test_a_disk_refuses_what_it_would_refuse_until_the_fault_is_lifted(
    mode: Mode, fails: str, run: Run, tmp_path: Path
) -> None:
    switch = tmp_path / "switch"
    switch.touch()
    ended = run(
        "h = os.open('f', os.O_RDWR | os.O_CREAT)\n"
        "def tried(name, work):\n"
        "    try: work()\n"
        "    except OSError as error: return f'{error.errno} {name}'\n"
        "    return '-'\n"
        "def all(): return ', '.join([tried('write', lambda: os.write(h, b'x')), tried('mkdir', lambda: os.mkdir('d')),"
        "tried('unlink', lambda: os.unlink('old'))])\n"
        f"print(all()); os.unlink({str(switch)!r}); Path('old').touch(); print(all())",
        Fault(mode, 2, while_there=switch),
    )
    assert ended.stdout.splitlines() == [fails, "-, -, -"], ended.stderr


def test_once_is_only_once_and_a_short_write_is_half(run: Run, root: Path) -> None:
    source = "h = os.open('f', os.O_RDWR | os.O_CREAT); print(os.write(h, b'abcd'), os.write(h, b'abcd'))"
    assert run(source, Fault(Mode.SHORT, 2, once=True)).stdout.split() == ["2", "4"]
    assert (root / "f").read_bytes() == b"ababcd"
    assert run(source, Fault(Mode.SHORT, 1)).stdout.split() == ["2", "2"]


def test_children_run_without_the_layer(run: Run, root: Path, journal: Path) -> None:
    run('import subprocess; subprocess.run([sys.executable, \'-c\', \'open("by-child", "w").write("x")\'], check=True)')
    assert (root / "by-child").exists()
    assert kinds(list(operations(journal))) == []
