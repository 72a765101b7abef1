"""What a device sends of its logs, and what it never sends: lines by time, level and bytes, without secrets."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.asked.bundle import bundle
from agent.asked.lines import kept, parse, pick
from agent.asked.logs import LogRequests
from agent.asked.redact import HIDDEN, redacted, without_secrets
from agent.config import AgentConfig, StatePaths
from agent.logs import KEPT_NAME, keeping
from agent.runtimes.evidence import Crash, Evidence
from agent.sandbox.log import RotatingLog, stamp_of, unstamped
from modules.commands import LOGS, AskLogs, Command, encode_asked
from modules.errors import MessageError
from modules.packed import pack, unpack

NOON = 1_700_000_000.0


def said(at: float, text: str) -> str:
    return stamp_of(at).decode() + text


LOG = "\n".join([
    said(NOON, "loading"),
    said(NOON + 10, "WARNING:root:slow disk"),
    said(NOON + 20, "Traceback (most recent call last):"),
    said(NOON + 20, '  File "entry.py", line 3, in run'),
    said(NOON + 20, "ValueError: an error nobody foresaw"),
    said(NOON + 30, "served 5"),
]) + "\n"  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "lines"),
    [
        (AskLogs("m"), 6),
        (AskLogs("m", since=NOON + 10), 5),
        (AskLogs("m", since=NOON + 10, until=NOON + 20), 1),
        (AskLogs("m", level="warning"), 4),
        (AskLogs("m", level="error"), 3),
        (AskLogs("m", limit=2), 2),
        (AskLogs("m", max_bytes=1024), 6),
    ],
)
def test_lines_are_picked_by_time_level_and_number(asked: AskLogs, lines: int) -> None:
    assert len(pick(LOG.encode(), asked).lines) == lines


def test_a_traceback_goes_whole_with_the_line_before_it_and_the_agents_own_words_have_levels() -> None:
    text = '2026-01-31T12:00:00+0000 error agent.link "lost" why=x\nTraceback (most recent call last):\n'
    text += '  File "a.py"\nKeyError\n'
    text += '2026-01-31T13:00:00+0100 info agent.link "connected"\n'
    lines = list(parse(text))
    assert [line.level for line in lines] == ["error", "error", "error", "error", "info"]
    assert {line.at for line in lines} == {1_769_860_800.0}


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ("there was no error at all", "info"),
        ("[error] broken", "error"),
        ("warn: slow", "warning"),
        ("2026 | FATAL | out", "error"),
        ("KeyError: 'x'", "error"),
        ("served 5", "info"),
        ("DEBUG:root:x", "debug"),
    ],
)
def test_a_modules_own_words_say_a_level_where_one_stands(words: str, level: str) -> None:
    assert [line.level for line in parse(said(NOON, words))] == [level]


def test_the_newest_lines_are_kept_where_not_all_fit_into_the_bytes() -> None:
    many = "".join(said(NOON + number, f"line {number:04d}\n") for number in range(200))
    picked = pick(many.encode(), AskLogs("m", max_bytes=1024))
    assert picked.found == 200
    assert picked.lines[-1].endswith("line 0199")
    assert sum(len(line) + 1 for line in picked.lines) <= 1024 < 1024 + 32


@given(st.binary(max_size=400))
def test_any_bytes_are_lines(data: bytes) -> None:
    picked = pick(data, AskLogs("m", level="warning", since=1.0))
    assert len(picked.lines) <= picked.found


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("password=hunter22 next", "hunter22"),
        ('{"api_key": "abcdef123456"}', "abcdef123456"),
        ("url=https://ann:s3cret99@example.com/x", "s3cret99"),
        ("Authorization: Bearer abcdefgh12345", "abcdefgh12345"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----", "MHcCAQ"),
        ("-----BEGIN PRIVATE KEY-----\nMHcCAQ", "MHcCAQ"),
        ("got eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig-nature from it", "eyJzdWIiOiIxIn0"),
        ("MY_SECRET: 'quoted words here'", "quoted words"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, secret: str) -> None:
    assert secret not in redacted(text)
    assert HIDDEN in redacted(text)
    assert secret in text


def test_values_are_hidden_by_their_names_and_settings_that_only_sound_like_secrets_stay() -> None:
    found = without_secrets({"serving": {"token": False}, "hub_token": "abc", "list": [{"password": "x"}], "rate": 5})
    assert found == {"serving": {"token": False}, "hub_token": HIDDEN, "list": [{"password": HIDDEN}], "rate": 5}


def test_each_line_of_a_log_begins_with_the_time_at_which_it_began(tmp_path: Path) -> None:
    now = [NOON]
    log = RotatingLog(tmp_path / "m.log", clock=lambda: now[0])
    for words in (b"one\ntw", b"o\n", b"", b"three\n\n", b"last"):
        log.write(words)
        now[0] += 1
    log.close()
    text = (tmp_path / "m.log").read_text()
    assert [unstamped(line) for line in text.split("\n")] == ["one", "two", "three", "", "last"]
    assert [line.at - NOON for line in parse(text)] == [0, 0, 3, 3, 4]


def test_what_a_log_has_kept_is_read_over_both_files_and_only_the_newest_of_it(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "m.log", limit_bytes=400)
    for number in range(30):
        log.write(f"line {number:02d}\n".encode())
    log.close()
    lines = kept(tmp_path / "m.log").decode().splitlines()
    assert (tmp_path / "m.log.1").exists()
    assert unstamped(lines[-1]) == "line 29"
    assert len(lines) > len((tmp_path / "m.log").read_text().splitlines())
    few = kept(tmp_path / "m.log", 100).decode().splitlines()
    assert lines[-len(few) :] == few
    assert kept(tmp_path / "none.log") == b""


async def test_logs_are_brought_by_name_and_time_and_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "digits.log").write_text(LOG)
    (tmp_path / "secret").write_text("no log")
    requests = LogRequests(tmp_path, clock=lambda: NOON + 30)

    async def ask(asked: AskLogs) -> tuple[str, str, list[str]]:
        answer = await requests.do(Command("c-1", LOGS, 0.0, encode_asked(asked)))
        return answer.result.outcome, answer.result.key, answer.brings.decode().splitlines()

    outcome, _, lines = await ask(AskLogs("digits", last_s=10))
    assert (outcome, [unstamped(line) for line in lines][-1], len(lines)) == ("done", "served 5", 4)
    assert (await ask(AskLogs("digits", since=NOON + 99)))[0] == "done"
    assert (await ask(AskLogs("other")))[:2] == ("refused", "no-log")
    other = await requests.do(Command("c-1", LOGS, 0.0, encode_asked(AskLogs("other"))))
    assert "it is not on this device, or has not said anything yet; there are logs of digits" in other.result.text
    assert (await ask(AskLogs("../secret")))[:2] == ("refused", "no-log")
    assert (await ask(AskLogs()))[:2] == ("refused", "no-log")
    with pytest.raises(MessageError, match="limit"):
        await requests.do(Command("c-1", LOGS, 0.0, msgspec.msgpack.encode({"limit": 0})))


def test_the_agent_keeps_the_newest_of_its_own_log(tmp_path: Path) -> None:
    logger = logging.getLogger("agent.test")
    with keeping(tmp_path, 8192):
        for number in range(300):
            logger.warning("something happened", extra={"number": number, "word": "a b"})
    logger.warning("after the end")
    text = kept(tmp_path / KEPT_NAME).decode()
    assert list(parse(text))[-1].level == "warning"
    assert 'agent.test "something happened" number=299 word="a b"' in text.splitlines()[-1]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 8192 + 400
    with keeping(tmp_path / "no", 0):
        logger.warning("not kept")
    assert not (tmp_path / "no").exists()


async def test_diagnostics_are_one_bounded_object_without_secrets(
    state_dir: StatePaths, agent_config: AgentConfig
) -> None:
    text = agent_config.to_toml().replace('hub = "', 'hub = "https://ann:s3cret99@', 1)
    state_dir.config.write_text(text)
    state_dir.logs.mkdir()
    (state_dir.logs / "digits.log").write_text("x" * 100 + "\npassword=hunter22\n" + "y" * 2_000_000 + "\nlast words\n")
    Evidence(state_dir.evidence).note("digits", Crash(NOON, 1, "a" * 64, "worker-exited", "SIGSEGV"))
    found = json.loads(await bundle(state_dir, 50))
    assert found.keys() == {
        "format", "at", "agent", "system", "status", "checks", "settings", "disk", "memory", "network", "heat",
        "crashes", "logs",
    }  # fmt: skip
    assert found["crashes"]["digits"][0]["why"] == "SIGSEGV"
    assert found["logs"]["digits"][-1].endswith("last words")
    assert found["memory"]["MemTotal"] > 0
    assert "lo" in found["network"]
    assert {check["name"] for check in found["checks"]} >= {"clock", "disk", "memory"}
    assert "s3cret99" not in json.dumps(found)
    assert "hunter22" not in json.dumps(found)


@given(st.binary(max_size=2000))
def test_what_is_packed_is_unpacked_and_within_its_bound(data: bytes) -> None:
    assert unpack(pack(data), 2000) == data
    assert pack(data) == pack(data)
    if data:
        with pytest.raises(MessageError, match="at most"):
            unpack(pack(data), len(data) - 1)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_pack_or_refused(data: bytes) -> None:
    try:
        unpack(data, 1000)
    except MessageError:
        return
    pytest.fail(f"{data!r} is no pack")
