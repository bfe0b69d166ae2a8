"""Does a store list its versions whole, each under the time at which it was written?

Some date a version when it was replaced, or a delete marker by the version below, or leave the oldest
out of the list without saying so. What was current at a time cannot be told then. Two versions and a delete
marker of a temporary key, each some time after the other, show it.
"""

from __future__ import annotations

import itertools
import logging

import trio

from s3mount.errors import NotS3Error, StuckListError
from s3mount.refs import ANY, Key, ObjectHeaders, ObjectVersion
from s3mount.s3.calls.versions import VersionLister
from s3mount.s3.calls.writing import Writer
from s3mount.s3.probe.trials import Trials

_log = logging.getLogger(__name__)

APART_S = 2.1
"""Between two writes, so that dates in whole seconds differ by more than one."""
APART_NS_MIN = 1_000_000_000
PAGES_MAX = 10
_BODY = b"s3mount tries how this store dates versions; to be deleted"


class DateTrial:
    """One trial of one bucket. It takes a little more than 4 s."""

    def __init__(self, writer: Writer, versions: VersionLister, trials: Trials) -> None:
        self._writer = writer
        self._versions = versions
        self._trials = trials

    async def run(self) -> bool | None:
        """Are all versions listed, in order, each dated when it was written? ``None``: it keeps no versions.

        Raises StoreError where it cannot be tried. What was written is removed.
        """
        key = f"{self._trials.key}.dated"
        wanted: list[str] = []
        try:
            for number in range(2):
                made = await self._writer.put(key, _BODY + bytes([number]), ObjectHeaders(), ANY)
                self._trials.wrote(key, made.version_id)
                if made.version_id in (None, "null"):
                    return None
                assert made.version_id is not None
                wanted.insert(0, made.version_id)
                await trio.sleep(APART_S)
            self._trials.wrote(key, await self._writer.delete_bare(key))
            listed = await self._list(key)
        except NotS3Error as error:
            if not isinstance(error.__cause__, StuckListError):
                raise
            _log.info("versions are not listed to their end: %s", error.describe())
            return False
        finally:
            await self._trials.remove_all()
        is_right = _is_as_written(listed, wanted)
        if not is_right:
            told = [(v.version_id, v.is_delete_marker, v.last_modified_ns) for v in listed]
            _log.info("versions %s, and then a delete marker, are listed as %s", wanted, told)
        return is_right

    async def _list(self, key: Key) -> list[ObjectVersion]:
        """What is told of the key, a version a page."""
        found: list[ObjectVersion] = []
        marker: tuple[Key | None, str | None] = (None, None)
        for _ in range(PAGES_MAX):
            page = await self._versions.page(key, None, *marker, 1)
            found += [version for version in page.versions if version.key == key]
            if page.next_key_marker is None:
                break
            marker = page.next_key_marker, page.next_version_marker
        return found


def _is_as_written(listed: list[ObjectVersion], wanted: list[str]) -> bool:
    """Is it a delete marker and then the versions ``wanted``, each clearly older than the one before?"""
    ids = [version.version_id for version in listed[1:]]
    if ids != wanted or not listed[0].is_delete_marker:
        return False
    dates = [version.last_modified_ns for version in listed]
    return all(newer - older >= APART_NS_MIN for newer, older in itertools.pairwise(dates))
