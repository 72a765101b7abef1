"""News reach the hub as events, in one bounded line, and a crash loop is no flood."""

from __future__ import annotations

from agent.news import MAX_TEXT, QUIET_S, News
from modules.messages import AgentEvent, decode_event


class Heard:
    """Where the news go, and the clock they go by."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[AgentEvent] = []
        self.news = News(self._offer, lambda: 1000.0 + self.now, lambda: self.now)

    def _offer(self, stream: str, payload: bytes) -> bool:
        assert stream == "event"
        self.events.append(decode_event(payload))
        return True


def test_news_become_an_event_with_time_level_and_module() -> None:
    heard = Heard()
    heard.news.tell("warning", "worker-crashed", "exit status 9", "camera")
    assert heard.events == [AgentEvent(1000.0, "warning", "worker-crashed", "exit status 9", "camera")]


def test_the_same_again_and_again_is_told_once_a_while_and_counted() -> None:
    heard = Heard()
    for _ in range(100):
        heard.news.tell("warning", "worker-crashed", "exit status 9", "camera")
        heard.now += 1.0
    assert [event.text for event in heard.events] == ["exit status 9", "exit status 9 (59 more before this)"]
    assert heard.events[1].at == 1000.0 + QUIET_S


def test_other_modules_and_other_keys_are_not_held_back() -> None:
    heard = Heard()
    for key, module in (("worker-crashed", "a"), ("worker-crashed", "b"), ("module-failed", "a")):
        heard.news.tell("error", key, "x", module)
    assert len(heard.events) == 3


def test_a_modules_own_words_are_one_line_and_bounded() -> None:
    heard = Heard()
    heard.news.tell("warning", "worker-crashed", "first\nsecond\x1b[31m" + "x" * 10_000, "a")
    assert heard.events[0].text.startswith("first second [31m")
    assert len(heard.events[0].text) == MAX_TEXT
