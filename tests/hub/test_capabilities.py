"""Rights to files: what they open, what they do not, and how their key lives."""

from pathlib import Path

import pytest

from cloud_hub.capabilities import MAX_LIFE_S, ROTATE_S, Capabilities
from cloud_hub.config import HubPaths
from cloud_hub.errors import Conflict
from cloud_hub.hardening import CREDENTIALS, exposed
from cloud_hub.trust.keys import DIRECTOR_TIMESTAMP, create_key
from support.clock import SetClock

FILE, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def paths(tmp_path: Path) -> HubPaths:
    return HubPaths(tmp_path)


def test_a_right_opens_its_own_file_for_its_own_purpose_until_it_ends(paths: HubPaths) -> None:
    clock = SetClock()
    rights = Capabilities(paths, clock)
    right = rights.give("url", FILE, int(clock()) + 60)
    assert rights.allows("url", FILE, right)
    assert not rights.allows("url", OTHER, right)
    assert not rights.allows("grant", FILE, right)
    clock.advance(60)
    assert not rights.allows("url", FILE, right)


def test_replicas_take_the_rights_of_each_other_over_the_end_of_a_month_and_no_other_hub_does(tmp_path: Path) -> None:
    clock = SetClock()
    for name in ("a", "b", "other"):
        create_key(HubPaths(tmp_path / name).keys, DIRECTOR_TIMESTAMP)
    key = HubPaths(tmp_path / "a").keys / f"{DIRECTOR_TIMESTAMP}.pem"
    (HubPaths(tmp_path / "b").keys / key.name).write_bytes(key.read_bytes())
    a, b, other = (Capabilities(HubPaths(tmp_path / name), clock, shared=True) for name in ("a", "b", "other"))
    clock.advance(ROTATE_S - clock() % ROTATE_S - 30)
    right = a.give("url", FILE, int(clock()) + 3600)
    for _ in range(2):
        assert b.allows("url", FILE, right)
        assert not other.allows("url", FILE, right)
        clock.advance(60)
    assert b.allows("url", FILE, right)
    assert a.give("url", FILE, 1) != right


@pytest.mark.parametrize("spoil", ["later", "cut", "flipped", "empty", "words", "long", "other letters", "no end"])
def test_a_right_that_somebody_made_up_or_changed_opens_nothing(paths: HubPaths, spoil: str) -> None:
    clock = SetClock()
    rights = Capabilities(paths, clock)
    end, _, mac = rights.give("url", FILE, int(clock()) + 60).partition(".")
    forged = {
        "later": f"{int(end) + 1000}.{mac}",
        "cut": f"{end}.{mac[:-1]}",
        "flipped": f"{end}.{'A' if mac[0] != 'A' else 'B'}{mac[1:]}",
        "empty": "",
        "words": "please",
        "long": f"{end}.{mac}{'A' * 100_000}",
        "other letters": f"{end}.{'é' * len(mac)}",
        "no end": f".{mac}",
    }[spoil]
    assert not rights.allows("url", FILE, forged)


def test_those_who_ask_within_half_a_life_get_the_same_end_and_it_is_never_too_near(paths: HubPaths) -> None:
    clock = SetClock()
    rights = Capabilities(paths, clock)
    for _ in range(200):
        clock.advance(37)
        assert 1800 < rights.end(3600) - clock() <= 3600
    clock.advance(1800 - clock() % 1800)
    first = rights.end(3600)
    clock.advance(1799)
    assert rights.end(3600) == first


def test_the_key_is_private_survives_a_restart_and_what_it_gave_outlives_its_rotation(paths: HubPaths) -> None:
    clock = SetClock()
    before = Capabilities(paths, clock)
    clock.advance(1)
    first = before.give("grant", FILE, int(clock()) + 60)
    assert paths.capability_key.stat().st_mode & 0o777 == 0o600
    assert exposed(paths) == []
    assert Capabilities(paths, clock).allows("grant", FILE, first)
    clock.advance(ROTATE_S + 1)
    last = before.give("grant", FILE, int(clock() + ROTATE_S))
    assert paths.capability_key.read_text().count("\n") == 2, "the old key is kept beside the new one"
    assert Capabilities(paths, clock).allows("grant", FILE, last)
    clock.advance(MAX_LIFE_S + 2)
    assert before.allows("grant", FILE, last)


def test_the_key_before_the_last_rotation_counts_no_longer_than_what_it_gave(paths: HubPaths) -> None:
    clock = SetClock()
    rights = Capabilities(paths, clock)
    old = rights.give("url", FILE, int(clock() + 10 * ROTATE_S))
    clock.advance(ROTATE_S + 1)
    assert rights.allows("url", FILE, old)
    clock.advance(MAX_LIFE_S + 1)
    assert not rights.allows("url", FILE, old)


def test_a_key_that_others_may_read_is_not_used(paths: HubPaths) -> None:
    rights = Capabilities(paths, SetClock())
    rights.give("url", FILE, 1)
    paths.capability_key.chmod(0o644)
    assert exposed(paths) == [paths.capability_key]
    with pytest.raises(Conflict, match="expected a file that only its owner can read"):
        Capabilities(paths, SetClock()).give("url", FILE, 1)


@pytest.mark.parametrize("text", ["", "nonsense", "1 abcd\n", "x " + "00" * 32 + "\n"])
def test_a_key_file_that_holds_something_else_is_refused_by_name(paths: HubPaths, text: str) -> None:
    paths.capability_key.parent.mkdir()
    paths.capability_key.touch(0o600)
    paths.capability_key.write_text(text)
    with pytest.raises(Conflict, match=r"capability\.key: expected lines"):
        Capabilities(paths, SetClock()).give("url", FILE, 1)


def test_a_sealed_key_is_read_where_systemd_opened_it_and_never_written_over(
    paths: HubPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SetClock()
    plain = Capabilities(paths, clock)
    right = plain.give("url", FILE, int(clock()) + 60)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    paths.capability_key.rename(credentials / "capability.key")
    monkeypatch.setenv(CREDENTIALS, str(credentials))
    assert Capabilities(paths, clock).allows("url", FILE, right)
    clock.advance(ROTATE_S + 1)
    sealed = Capabilities(paths, clock)
    assert sealed.allows("url", FILE, sealed.give("url", FILE, int(clock()) + 60))
    assert not paths.capability_key.exists()
