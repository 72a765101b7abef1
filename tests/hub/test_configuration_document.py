"""Configurations as values: the rule by which parts are merged, what an operator changes, what differs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.configuration.changes import LayerChange, changed
from cloud_hub.configuration.document import Document, Override, check, differences, merge_patch, resolve
from cloud_hub.errors import BadRequest
from modules.configuration import MAX_CONFIG_BYTES, check_config, config_digest
from modules.errors import ConfigurationError

LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.lists(st.integers(0, 2), max_size=2)
OBJECTS = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("abc"), inner)),
    max_size=3,
)


# RFC 7396, appendix A, those whose patch is an object.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_parts_are_merged_as_the_rfc_says(target: Any, patch: dict[str, Any], result: Any) -> None:
    assert merge_patch(target, patch) == result


@given(OBJECTS, OBJECTS)
def test_a_patch_twice_is_as_once_and_what_comes_of_it_holds_no_null(target: Any, patch: Any) -> None:
    once = merge_patch(merge_patch({}, target), patch)
    assert merge_patch(once, patch) == once
    assert merge_patch({}, once) == once  # nothing in it takes anything away


def test_a_devices_own_part_wins_over_targets_and_later_targets_over_earlier_ones() -> None:
    document = Document(
        {"a": 1, "b": 1, "c": {"x": 1, "y": 1}},
        (Override("site=lab", {"b": 2, "c": {"x": 2}}), Override("group = pilot", {"b": 3, "c": {"y": None}})),
        {"cam-1": {"a": 9}},
    )
    assert resolve(document, (), "cam-2") == {"a": 1, "b": 1, "c": {"x": 1, "y": 1}}
    assert resolve(document, (0,), "cam-2") == {"a": 1, "b": 2, "c": {"x": 2, "y": 1}}
    assert resolve(document, (0, 1), "cam-1") == {"a": 9, "b": 3, "c": {"x": 2}}


def test_a_part_keeps_what_is_not_named_and_may_say_that_something_is_taken_away() -> None:
    document = changed(Document({"a": 1}), LayerChange("site=lab", set={"a": None, "camera": {"fps": 5}}))
    document = changed(document, LayerChange("site=lab", set={"camera": {"size": 3}}))
    assert document.targets == (Override("site=lab", {"a": None, "camera": {"fps": 5, "size": 3}}),)
    assert resolve(document, (0,), "cam-1") == {"camera": {"fps": 5, "size": 3}}
    document = changed(document, LayerChange("site=lab", unset=("camera.fps", "a")))
    assert document.targets == (Override("site=lab", {"camera": {"size": 3}}),)
    document = changed(document, LayerChange(device="cam-1", set={"b": 2}))
    assert changed(document, LayerChange("site=lab", unset=("camera",))).targets == ()
    assert changed(document, LayerChange(device="cam-1", remove=True)).devices == {}
    assert changed(document, LayerChange(set={"z": 1}, replace=True)).fleet == {"z": 1}


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (LayerChange(unset=("nothing",)), "nothing-to-unset", "says nothing of it"),
        (LayerChange(unset=("a.b",)), "nothing-to-unset", "says nothing of it"),
        (LayerChange(set={"big": "x" * MAX_CONFIG_BYTES}), "configuration-invalid", "at most 32768 bytes"),
        (LayerChange(set={"n": 2**70}), "configuration-invalid", "64 bits"),
        (LayerChange(set={"n": "a\x00b"}), "configuration-invalid", "NUL"),
    ],
)
def test_what_cannot_be_a_configuration_is_refused_with_its_place(change: LayerChange, key: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as refused:
        changed(Document({"a": 1}), change)
    assert refused.value.key == key


def test_bounds_of_a_revision_hold() -> None:
    with pytest.raises(BadRequest, match="at most 64 overrides by query, got 65"):
        check(Document(targets=tuple(Override(f"site=s{number}", {"a": 1}) for number in range(65))))
    with pytest.raises(BadRequest, match="two overrides have the same target"):
        check(Document(targets=(Override("site=a", {"a": 1}), Override("site=a", {"a": 2}))))
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"a": deep}
    with pytest.raises(ConfigurationError, match="at most 16 levels"):
        check_config(deep)
    with pytest.raises(ConfigurationError, match="finite"):
        check_config({"a": float("nan")})
    with pytest.raises(ConfigurationError, match="expected an object"):
        check_config([1])


def test_differences_name_part_and_path_and_tell_a_number_from_a_truth_value() -> None:
    before = Document({"a": 1, "c": {"x": 1}}, (Override("t1", {"b": 1}), Override("t2", {"b": 2})))
    after = Document(
        {"a": True, "c": {"x": 1, "y": [2]}},
        (Override("t2", {"b": 2}), Override("t1", {"b": 1})),
        {"cam-1": {"d": None}},
    )
    found = [(one.layer, one.path, one.before, one.after) for one in differences(before, after)]
    assert found == [
        ("fleet", "$.a", 1, True),
        ("fleet", "$.c.y", msgspec.UNSET, [2]),
        ("device cam-1", "$.d", msgspec.UNSET, None),
        ("targets", "order", ["t1", "t2"], ["t2", "t1"]),
    ]
    assert differences(after, after) == []


def test_a_digest_is_of_the_value_and_not_of_how_it_is_written() -> None:
    assert config_digest({}) == ""
    assert config_digest({"a": 1, "b": {"c": 1.5, "d": "ü"}}) == config_digest({"b": {"d": "ü", "c": 1.5}, "a": 1})
    assert config_digest({"a": 1}) != config_digest({"a": 1.0})
