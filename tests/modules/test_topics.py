"""Topics: built and parsed by one type; nothing else is a topic of ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.errors import TopicError
from modules.topics import Topic, all_down, all_up, down, up

devices = st.from_regex(r"[a-z0-9][a-z0-9-]{2,62}", fullmatch=True)
channels = st.sampled_from([("up", "state"), ("up", "window"), ("up", "sample"), ("up", "get"), ("down", "data")])


@given(devices, channels)
def test_every_topic_parses_to_what_built_it(device: str, channel: tuple[str, str]) -> None:
    text = f"mooring/1/{device}/{channel[0]}/{channel[1]}"
    assert str(Topic.parse(text)) == text


@given(st.text(max_size=80))
def test_arbitrary_text_is_a_topic_or_a_topic_error(text: str) -> None:
    try:
        topic = Topic.parse(text)
    except TopicError:
        return
    assert str(topic) == text


@pytest.mark.parametrize(
    "text",
    [
        "mooring/2/cam-1/up/state",
        "mooring/1/cam-1/up/desired",
        "mooring/1/cam-1/down/state",
        "mooring/1/+/up/state",
        "mooring/1/#",
        "mooring/1/_hub/up/state",
        "mooring/1/cam-1\n/up/state",
        "mooring/1/cam-1/up/state/more",
        "mooring/1/CAM/up/state",
        "mooring/1/ab/up/state",
    ],
)
def test_foreign_topics_are_refused(text: str) -> None:
    with pytest.raises(TopicError, match="expected"):
        Topic.parse(text)


def test_subscriptions_cover_their_topics() -> None:
    assert all_up("window").replace("+", "cam-1") == up("cam-1", "window")
    assert all_down("cam-1").replace("+", "ack") == down("cam-1", "ack")
