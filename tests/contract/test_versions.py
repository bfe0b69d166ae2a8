from __future__ import annotations

import pytest

from s3mount.errors import RejectedError
from s3mount.refs import ObjectHeaders, ObjectVersion, VersionPage
from s3mount.s3.store import Store
from tests.contract.subjects import Subject
from tests.contract.test_listing import KEYS

PLAIN = ObjectHeaders()
ODD_KEYS = [*KEYS, "per%cent", "per%25cent", 'quo"te', "it's", "a,b;c", "back\\slash", "k" * 1024]


async def everything(
    store: Store, prefix: str = "", delimiter: str | None = None, max_keys: int = 1000
) -> VersionPage:
    """All pages as one."""
    versions: list[ObjectVersion] = []
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
        versions.extend(page.versions)
        prefixes.extend(page.prefixes)
        key_marker, version_marker = page.next_key_marker, page.next_version_marker
        if key_marker is None:
            assert version_marker is None
            return VersionPage(tuple(versions), tuple(prefixes), None, None)


def shown(page: VersionPage) -> list[tuple[str, str]]:
    """Each entry as its key and its size, delete markers as ``-``, the latest with a star."""
    return [
        (v.key, ("-" if v.is_delete_marker else str(v.size)) + ("*" if v.is_latest else ""))
        for v in page.versions
    ]


def test_every_version_comes_once_the_newest_first(subject: Subject) -> None:
    ids: dict[tuple[str, int], str | None] = {}

    async def body(store: Store) -> None:
        for key in ODD_KEYS:
            for size in (1, 2):
                ids[key, size] = (await store.put(key, bytes(size), PLAIN)).version_id
        for key in ODD_KEYS[::2]:
            await store.delete(key)
        expected = []
        for key in sorted(ODD_KEYS, key=str.encode):
            gone = key in ODD_KEYS[::2]
            expected += [(key, "-*")] if gone else []
            expected += [(key, "2" if gone else "2*"), (key, "1")]
        for max_keys in (1, 2, 7, 1000):
            page = await everything(store, max_keys=max_keys)
            assert shown(page) == expected
            for version in page.versions:
                if not version.is_delete_marker:
                    assert version.version_id == ids[version.key, version.size]
                    info = await store.head(version.key, version_id=version.version_id)
                    assert (info.size, info.etag) == (version.size, version.etag)
                    assert info.last_modified_ns // 10**9 == version.last_modified_ns // 10**9
            if max_keys == 1:
                ids_seen = [(v.key, v.version_id) for v in page.versions]
                assert len(set(ids_seen)) == len(expected)

    subject.run(body, versioned=True)


def test_delete_markers_stand_among_the_versions_in_the_order_of_writing(subject: Subject) -> None:
    async def body(store: Store) -> None:
        await store.put("before", b"1", PLAIN)
        # All of this within a second or two: dates of whole seconds do not tell the order.
        await store.put("key", b"1", PLAIN)
        await store.delete("key")
        await store.put("key", b"22", PLAIN)
        await store.delete("key")
        # Ceph 16 makes no delete marker where one is the latest already.
        twice = not subject.name.startswith("ceph")
        if twice:
            await store.delete("key")
        await store.put("key", b"333", PLAIN)
        await store.put("key", b"4444", PLAIN)
        await store.delete("key2")
        await store.put("key2", b"1", PLAIN)
        order = ["4*", "3", *["-"] * (2 if twice else 1), "2", "-", "1"]
        expected = [("before", "1*"), *(("key", what) for what in order)]
        expected += [("key2", "1*"), ("key2", "-")]
        for max_keys in (1, 2, 3, 1000):
            assert shown(await everything(store, max_keys=max_keys)) == expected

    subject.run(body, versioned=True)


def test_versions_are_grouped_by_prefix_and_delimiter(subject: Subject) -> None:
    async def body(store: Store) -> None:
        for key in ("a", "a/1", "a/2/x", "b/c/d", "b/e", "z"):
            await store.put(key, b"1", PLAIN)
            await store.put(key, b"22", PLAIN)
        await store.delete("b/e")
        for max_keys in (1, 2, 3, 1000):
            page = await everything(store, delimiter="/", max_keys=max_keys)
            assert shown(page) == [("a", "2*"), ("a", "1"), ("z", "2*"), ("z", "1")]
            assert page.prefixes == ("a/", "b/")
            page = await everything(store, "b/", "/", max_keys)
            assert shown(page) == [("b/e", "-*"), ("b/e", "2"), ("b/e", "1")]
            assert page.prefixes == ("b/c/",)
        assert await everything(store, "nothing") == VersionPage((), (), None, None)
        with pytest.raises(RejectedError):
            await store.list_versions_page("\udcff")

    subject.run(body, versioned=True)


def test_a_key_marker_alone_means_the_keys_behind_it(subject: Subject) -> None:
    async def body(store: Store) -> None:
        for key in ("a", "b", "b/1", "c"):
            await store.put(key, b"1", PLAIN)
            await store.put(key, b"22", PLAIN)
        page = await store.list_versions_page("", key_marker="b")
        assert shown(page) == [("b/1", "2*"), ("b/1", "1"), ("c", "2*"), ("c", "1")]
        page = await store.list_versions_page("", key_marker="aa", max_keys=1)
        assert shown(page) == [("b", "2*")]
        page = await store.list_versions_page(
            "", key_marker="b", version_marker=page.versions[0].version_id, max_keys=1
        )
        assert shown(page) == [("b", "1")]
        page = await store.list_versions_page("", key_marker="c")
        assert (page.versions, page.next_key_marker) == ((), None)

    subject.run(body, versioned=True)


def test_without_versions_each_key_has_the_one_called_null(subject: Subject) -> None:
    async def body(store: Store) -> None:
        for key in ODD_KEYS:
            await store.put(key, b"1", PLAIN)
            await store.put(key, b"22", PLAIN)
        for max_keys in (3, 1000):
            page = await everything(store, max_keys=max_keys)
            assert shown(page) == [(key, "2*") for key in sorted(ODD_KEYS, key=str.encode)]
            assert {version.version_id for version in page.versions} == {"null"}

    subject.run(body)


def test_null_versions_have_their_place_before_and_after_versions(subject: Subject) -> None:
    async def before(store: Store) -> None:
        for key in ("old", "rewritten", "deleted"):
            await store.put(key, b"1", PLAIN)

    async def meanwhile(store: Store) -> None:
        for key in ("rewritten", "new"):
            await store.put(key, b"22", PLAIN)
        await store.delete("deleted")

    async def after(store: Store) -> None:
        await store.put("new", b"333", PLAIN)
        await store.delete("old")
        for max_keys in (1, 2, 1000):
            page = await everything(store, max_keys=max_keys)
            assert shown(page) == [
                *[("deleted", "-*"), ("deleted", "1")],
                *[("new", "3*"), ("new", "2")],
                ("old", "-*"),
                *[("rewritten", "2*"), ("rewritten", "1")],
            ]
            null = [(v.key, v.size) for v in page.versions if v.version_id == "null"]
            assert null == [("deleted", 1), ("new", 3), ("old", 0), ("rewritten", 1)]

    subject.run(before)
    subject.enable()
    subject.run(meanwhile, versioned=True)
    subject.suspend()
    subject.run(after, versioned=True)
