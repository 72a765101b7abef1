"""Messages: what is encoded decodes to the same value, and nothing else decodes."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware_profiles.profile import DeviceProfile
from modules.errors import MessageError
from modules.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    AgentEvent,
    Answer,
    Batch,
    DeviceReport,
    Doorbell,
    Get,
    Message,
    Refusal,
    Sample,
    SignedReport,
    UpdateReport,
    decode,
    decode_event,
    decode_report,
    decode_sample,
    encode,
    encode_report,
)
from modules.tensors import Tensor

texts = st.text(max_size=40)
numbers = st.integers(min_value=0, max_value=2**53)
streams = st.sampled_from(["window", "sample", "event"])
entries = st.lists(st.tuples(numbers, st.binary(max_size=50)), max_size=5).map(tuple)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Get, st.sampled_from(["image", "director", "blob"]), texts, numbers, numbers),
    st.builds(Answer, numbers, numbers, st.binary(max_size=200)),
    st.builds(Refusal, texts, texts),
    st.builds(Doorbell, numbers),
    st.builds(Batch, streams, texts, numbers, entries),
    st.builds(Ack, streams, texts, numbers),
    st.builds(SignedReport, st.binary(max_size=200), st.binary(max_size=80)),
)


@given(messages)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_message_or_a_message_error(data: bytes) -> None:
    for decoder in (decode, decode_sample, decode_event, decode_report):
        try:
            decoder(data)
        except MessageError:
            continue


def test_fields_of_a_newer_minor_version_are_ignored() -> None:
    newer = msgspec.msgpack.encode({"type": "doorbell", "director_version": 7, "colour": "blue"})
    assert decode(newer) == Doorbell(7)


def test_a_message_that_the_broker_would_refuse_is_refused_before_it_is_sent() -> None:
    with pytest.raises(MessageError, match=str(MAX_MESSAGE_BYTES)):
        encode(Answer(0, 0, bytes(MAX_MESSAGE_BYTES)))
    with pytest.raises(MessageError, match="at most"):
        decode(bytes(MAX_MESSAGE_BYTES + 1))


def test_a_sample_with_a_lying_tensor_is_refused() -> None:
    sample = Sample("digits", "0" * 64, "p1", 1.0, "base", 0.5, (Tensor("x", "FP32", (1, 2), bytes(8)),), ())
    assert decode_sample(encode(sample)) == sample
    lying = msgspec.msgpack.encode(sample).replace(b"FP32", b"FP64")
    with pytest.raises(MessageError, match="expected 16 bytes"):
        decode_sample(lying)


def test_reports_and_events_survive() -> None:
    report = DeviceReport(
        device="cam-1",
        counter=3,
        at=1.5,
        agent_version="0.1.0",
        profile=DeviceProfile("generic-x86_64", "x86_64"),
        director_version=2,
        image_version=4,
        modules=(),
        current=UpdateReport("idle"),
        last=UpdateReport("failed", 2, ("r-1",), 1, "disk-full", "no space"),
    )
    assert decode_report(encode_report(report)) == report
    event = AgentEvent(2.0, "warning", "worker-crashed", "digits ended with status 1", "digits")
    assert decode_event(encode(event)) == event


def test_a_report_with_an_impossible_state_is_refused() -> None:
    with pytest.raises(MessageError, match="report"):
        decode_report(b'{"device":"cam-1","counter":-1}')
