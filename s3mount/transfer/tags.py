"""Tags that a store loses when an object is copied or uploaded in parts (Ceph 16): they are set again."""

from __future__ import annotations

from urllib.parse import parse_qsl

from s3mount.errors import NoSuchKeyError
from s3mount.refs import Key, VersionId
from s3mount.s3.store import Store


async def restore_tags(
    store: Store, key: Key, tags: str | None, version_id: VersionId | None
) -> None:
    """Look whether the object has ``tags``, and set them where it has others. Nothing where there are none.

    Repeatable. An object that is gone is no error. Raises the store's other errors.
    """
    if not tags:
        return
    try:
        there = (await store.describe(key)).headers
        if there is not None and _tag_set(there.tags) != _tag_set(tags):
            await store.put_tags(key, tags, version_id=version_id)
    except NoSuchKeyError:
        return


def _tag_set(tags: str | None) -> list[tuple[str, str]]:
    return sorted(parse_qsl(tags or "", keep_blank_values=True))
