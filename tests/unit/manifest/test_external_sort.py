from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.errors import ManifestError
from s3mount.manifest import external_sort
from s3mount.manifest.comparing import Difference, differences, is_same
from s3mount.manifest.external_sort import sorted_entries
from s3mount.manifest.model import Entry
from s3mount.manifest.summary import summarise

names = st.text(st.sampled_from("ab/é\ud7ff\ue000\uffff😀"), min_size=1, max_size=3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["b1", "b2"]), names)), st.integers(1, 7))
def test_entries_come_sorted_by_utf_8_whatever_fits_into_memory(
    pairs: list[tuple[str, str]], held: int
) -> None:
    before = external_sort.ENTRIES_IN_MEMORY_MAX, external_sort.CHUNK_ENTRIES
    external_sort.ENTRIES_IN_MEMORY_MAX, external_sort.CHUNK_ENTRIES = held, 2
    try:
        made = [Entry(bucket, key, "v", 1, "e", 2, 3, 4) for bucket, key in pairs]
        found = list(sorted_entries(iter(made), "x"))
    finally:
        external_sort.ENTRIES_IN_MEMORY_MAX, external_sort.CHUNK_ENTRIES = before
    assert found == sorted(set(made), key=lambda entry: entry.order)


def test_a_key_with_two_versions_is_refused() -> None:
    made = [Entry("b", "k", "v1"), Entry("b", "j", "v1"), Entry("b", "k", "v2")]
    with pytest.raises(ManifestError, match="m names two versions of 'k': v1 and v2"):
        list(sorted_entries(made, "m"))


def side(versions: dict[str, str]) -> Iterator[Entry]:
    return (Entry("b", key, versions[key], 1, "e") for key in sorted(versions))


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["v1", "v2"])),
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["v1", "v2"])),
)
def test_differences_are_those_of_two_dictionaries(
    old: dict[str, str], new: dict[str, str]
) -> None:
    found = {each.entry.key: each.kind for each in differences(side(old), side(new))}
    expected = {key: "removed" for key in old if key not in new}
    expected |= {key: "added" for key in new if key not in old}
    expected |= {key: "changed" for key in new if key in old and old[key] != new[key]}
    assert found == expected
    assert list(differences(side(old), side(old))) == []
    by_content = {each.kind for each in differences(side(old), side(new), by_content=True)}
    assert "changed" not in by_content


def test_buckets_are_compared_one_by_one() -> None:
    old, new = [Entry("a", "z", "v")], [Entry("b", "a", "v")]
    assert list(differences(iter(old), iter(new))) == [
        Difference("removed", old[0], None),
        Difference("added", None, new[0]),
    ]


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (Entry("b", "k", "v1", 1, "e"), Entry("b", "k", "v1"), True),
        (Entry("b", "k", "v1", 1, "e"), Entry("b", "k", "v2", 1, "e"), False),
        (Entry("b", "k", "null", 1, "e"), Entry("b", "k", "null", 1, "f"), False),
        (Entry("b", "k", "null", 1, "e"), Entry("b", "k", "null", 1, "e"), True),
        (Entry("b", "k", "null", 1, "e", 10**9), Entry("b", "k", "null", 1, "e", 9**10), False),
        (Entry("b", "k", "null", 1, "e", 10**9), Entry("b", "k", "null", 1, "e", 10**9 + 5), True),
        (Entry("b", "k", None, 1, "e"), Entry("b", "k", "v2", 1, "e"), True),
        (Entry("b", "k", None, 1, "e"), Entry("b", "k", "v2", 2), False),
        (Entry("b", "k", None), Entry("b", "k", "v2", 2), True),
    ],
)
def test_what_both_sides_tell_must_agree(old: Entry, new: Entry, same: bool) -> None:
    assert is_same(old, new) is same
    assert is_same(new, old) is same


def test_a_manifest_is_added_up() -> None:
    found = summarise(
        [
            Entry("b", "k", "v", 5, "", 7),
            Entry("a", "z", None, None, "", 3),
            Entry("a", "b", "v", 2),
        ]
    )
    assert (found.count, found.size_bytes, found.without_size, found.without_version) == (
        3,
        7,
        1,
        1,
    )
    assert (found.first_modified_ns, found.last_modified_ns) == (3, 7)
    assert found.buckets == {"a": 2, "b": 1}
    assert not found.is_in_order
    assert summarise([]).is_in_order
