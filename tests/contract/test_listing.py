from __future__ import annotations

import pytest

from s3mount.errors import RejectedError
from s3mount.refs import ListPage, ObjectHeaders, ObjectInfo
from s3mount.s3.store import Store
from tests.contract.subjects import Subject

KEYS = [
    "a",
    "a b",
    "a/",
    "a/1",
    "a/2/x",
    "a/2/y",
    "a0",
    "b/c/d",
    "b/e",
    "dir+plus/x",
    "dir%20/x",
    "z",
    "ä/1",
    "ä/2",
    "日本/1",
    "😀",
    "q\x01/x",
    "q\x02",
    "q\r",
    "q\n",
    "\uffff/x",
]


async def everything(store: Store, prefix: str, delimiter: str | None, max_keys: int) -> ListPage:
    """All pages as one."""
    objects: list[ObjectInfo] = []
    prefixes: list[str] = []
    token = None
    while True:
        page = await store.list_page(prefix, delimiter=delimiter, token=token, max_keys=max_keys)
        assert len(page.objects) + len(page.prefixes) <= max_keys
        objects.extend(page.objects)
        prefixes.extend(page.prefixes)
        token = page.next_token
        if token is None:
            return ListPage(tuple(objects), tuple(prefixes), None)


def expected(prefix: str, delimiter: str | None) -> tuple[list[str], list[str]]:
    """What S3 lists, by its rules, in the order of UTF-8."""
    objects, groups = [], []
    for key in sorted(KEYS, key=str.encode):
        if not key.startswith(prefix):
            continue
        rest = key[len(prefix) :]
        if delimiter and delimiter in rest:
            group = prefix + rest[: rest.index(delimiter) + len(delimiter)]
            if group not in groups:
                groups.append(group)
        else:
            objects.append(key)
    return objects, groups


def test_pages_hold_every_key_once_in_the_order_of_utf_8(subject: Subject) -> None:
    async def body(store: Store) -> None:
        for key in KEYS:
            await store.put(key, key.encode(), ObjectHeaders())
        for prefix in ("", "a", "a/", "a/2/", "b/", "dir", "ä/", "nothing", "😀"):
            for delimiter in (None, "/"):
                for max_keys in (1, 2, 3, 1000):
                    found = await everything(store, prefix, delimiter, max_keys)
                    objects, groups = expected(prefix, delimiter)
                    assert [entry.key for entry in found.objects] == objects
                    assert list(found.prefixes) == groups
                    assert all(entry.size == len(entry.key.encode()) for entry in found.objects)
        await store.delete_many(KEYS)
        assert (await store.list_page("")).objects == ()

    subject.run(body)


def test_listing_may_start_anywhere(subject: Subject) -> None:
    async def body(store: Store) -> None:
        for key in ("a", "b", "c/1", "c/2", "d"):
            await store.put(key, b"", ObjectHeaders())
        page = await store.list_page("", start_after="b")
        assert [entry.key for entry in page.objects] == ["c/1", "c/2", "d"]
        page = await store.list_page("", start_after="bb", delimiter="/")
        assert ([entry.key for entry in page.objects], page.prefixes) == (["d"], ("c/",))
        page = await store.list_page("", start_after="zzz")
        assert (page.objects, page.prefixes, page.next_token) == ((), (), None)

    subject.run(body)


def test_an_empty_bucket_has_one_empty_page(subject: Subject) -> None:
    async def body(store: Store) -> None:
        assert await store.list_page("") == ListPage((), (), None)
        with pytest.raises(RejectedError):
            await store.list_page("\udcff")

    subject.run(body)
