from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from s3mount.clock import ManualClock
from s3mount.errors import ServerFaultError
from s3mount.refs import ObjectHeaders, ObjectVersion
from s3mount.s3.calls.versions import in_order, is_grouped, parse_versions, undecided
from s3mount.testing.memory_store import MemoryStore

MS = 1_000_000


def entry(key: str, version_id: str, what: str, at_ms: int) -> ObjectVersion:
    """``what``: ``-`` for a delete marker, a star behind it for the latest."""
    return ObjectVersion(key, version_id, "*" in what, "-" in what, 0, "", at_ms * MS)


def test_a_document_tells_both_kinds_and_how_to_go_on() -> None:
    page = parse_versions(
        b'<?xml version="1.0"?><ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        b"<IsTruncated>true</IsTruncated><NextKeyMarker>q&#x1;</NextKeyMarker>"
        b"<NextVersionIdMarker>n1</NextVersionIdMarker>"
        b"<Version><Key>a b</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest><Size>7</Size>"
        b'<LastModified>2026-10-01T00:00:00.250Z</LastModified><ETag>"e"</ETag>'
        b"<StorageClass>GLACIER</StorageClass></Version>"
        b"<DeleteMarker><Key>q&#x1;</Key><VersionId>null</VersionId><IsLatest>true</IsLatest>"
        b"<LastModified>2026-10-01T00:00:01Z</LastModified></DeleteMarker>"
        b"<CommonPrefixes><Prefix>x&#xD;/</Prefix></CommonPrefixes></ListVersionsResult>"
    )
    at_ns = 1_790_812_800_000_000_000
    assert page.versions == (
        ObjectVersion("a b", "v1", False, False, 7, "e", at_ns + 250 * MS, "GLACIER"),
        ObjectVersion("q\x01", "null", True, True, 0, "", at_ns + 1000 * MS),
    )
    assert page.prefixes == ("x\r/",)
    assert (page.next_key_marker, page.next_version_marker) == ("q\x01", "n1")


def test_names_in_url_encoding_are_taken_back() -> None:
    page = parse_versions(
        b"<ListVersionsResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
        b"<NextKeyMarker>a%2Bb+c</NextKeyMarker><CommonPrefixes><Prefix>%C3%A9/</Prefix>"
        b"</CommonPrefixes></ListVersionsResult>"
    )
    assert (page.next_key_marker, page.next_version_marker) == ("a+b c", None)
    assert page.prefixes == ("é/",)


@pytest.mark.parametrize(
    "body",
    [
        b"<ListBucketResult></ListBucketResult>",
        b"<ListVersionsResult><IsTruncated>true</IsTruncated></ListVersionsResult>",
        b"<ListVersionsResult><Version><Key>a</Key></Version></ListVersionsResult>",
        b"nothing",
    ],
)
def test_what_is_no_list_of_versions_is_a_fault_of_the_server(body: bytes) -> None:
    with pytest.raises(ServerFaultError):
        parse_versions(body)


def test_entries_sorted_by_kind_are_put_in_order_by_time_and_by_asking() -> None:
    order = [
        entry("a", "5", "-*", 9),
        entry("a", "4", "-", 9),
        entry("a", "3", "", 9),
        entry("a", "2", "-", 9),
        entry("a", "1", "", 9),
        entry("b", "9", "", 9),
        entry("b", "8", "-", 7),
        entry("b", "7", "", 6),
        entry("c", "6", "*", 9),
        entry("c", "5", "-", 9),
    ]
    grouped = [v for v in order if v.is_delete_marker] + [
        v for v in order if not v.is_delete_marker
    ]
    assert is_grouped(grouped)
    assert not is_grouped(order)
    assert [(v.key, v.version_id) for v in undecided(grouped)] == [("a", "4"), ("a", "2")]
    successors: dict[tuple[str, str], str | None] = {("a", "4"): "3", ("a", "2"): "1"}
    assert list(in_order(grouped, successors)) == order


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 2)), max_size=9),
    st.booleans(),
)
def test_any_history_comes_back_from_being_sorted_by_kind(
    writes: list[tuple[str, bool, int]], markers_first: bool
) -> None:
    store = MemoryStore(versioning="enabled", clock=(clock := ManualClock()))

    async def main() -> None:
        for key, is_deletion, pause_ms in writes:
            clock.advance(pause_ms / 1000)
            if is_deletion:
                await store.delete(key)
            else:
                await store.put(key, b"", ObjectHeaders())
        truth = (await store.list_versions_page("")).versions
        kinds = sorted(truth, key=lambda v: v.is_delete_marker is not markers_first)
        following = {
            (v.key, v.version_id): after.version_id if after and after.key == v.key else None
            for v, after in zip(truth, [*truth[1:], None], strict=False)
        }
        wanted = {(v.key, v.version_id): following[v.key, v.version_id] for v in undecided(kinds)}
        assert in_order(kinds, wanted) == truth

    trio.run(main)


names = st.text(st.sampled_from("ab/é\uffff😀"), min_size=1, max_size=4)


@given(
    writes=st.lists(st.tuples(names, st.booleans()), max_size=12),
    prefix=st.text(st.sampled_from("ab/é"), max_size=2),
    delimiter=st.sampled_from([None, "/", "a"]),
    max_keys=st.integers(1, 5),
)
def test_pages_in_memory_agree_with_a_naive_list(
    writes: list[tuple[str, bool]], prefix: str, delimiter: str | None, max_keys: int
) -> None:
    history: dict[str, list[str]] = {}
    expected: list[tuple[str, str]] = []
    groups: list[str] = []

    async def main() -> None:
        store = MemoryStore(versioning="enabled")
        for number, (key, is_deletion) in enumerate(writes):
            if is_deletion:
                await store.delete(key)
            else:
                await store.put(key, bytes(number), ObjectHeaders())
            history.setdefault(key, []).append("-" if is_deletion else str(number))
        for key in sorted(history, key=str.encode):
            rest = key.removeprefix(prefix)
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                group = prefix + rest.partition(delimiter)[0] + delimiter
                groups.extend([] if group in groups else [group])
            else:
                expected.extend((key, what) for what in history[key][::-1])
        found: list[tuple[str, str]] = []
        prefixes: list[str] = []
        key_marker = version_marker = None
        while True:
            page = await store.list_versions_page(
                prefix,
                delimiter=delimiter,
                key_marker=key_marker,
                version_marker=version_marker,
                max_keys=max_keys,
            )
            assert len(page.versions) + len(page.prefixes) <= max_keys
            found += [(v.key, "-" if v.is_delete_marker else str(v.size)) for v in page.versions]
            prefixes += page.prefixes
            key_marker, version_marker = page.next_key_marker, page.next_version_marker
            if key_marker is None:
                break
        assert (found, prefixes) == (expected, groups)

    trio.run(main)
