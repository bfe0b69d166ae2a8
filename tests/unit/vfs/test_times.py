"""Times far away: kept as far as the journal and the metadata carry them, else the nearest that they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3mount.clock import DATE_NS_MAX, TIME_NS_MAX, TIME_NS_MIN, clamped_ns
from s3mount.manifest.times import format_time, parse_time
from s3mount.refs import ObjectHeaders
from s3mount.s3.headers import http_date_ns, iso_date_ns
from s3mount.spool.journal.put_log import read_puts
from tests.sim.world import World, simulated


@pytest.mark.parametrize("moment", ["1650-01-01", "1690-01-01", "1969-12-31", "2243-01-01"])
@pytest.mark.parametrize("later", ["2400-01-01", "9999-12-31", "0001-01-01"])
def test_a_time_that_touch_sets_is_there_after_the_next_start(
    tmp_path: Path, moment: str, later: str
) -> None:
    @simulated
    async def run() -> None:
        world = World(tmp_path)
        wanted = {"f": _far(moment), "g": _far(later), "d": _far(later)}
        async with world.mounted(attributes="always") as mount:
            await mount.mkdir("d")
            for path, time_ns in wanted.items():
                if path != "d":
                    await mount.write(path, b"x")
                await mount.utime(path, time_ns)
            await mount.sync()
            await mount.chmod("f", 0o600)
            await mount.sync()
            assert world.files() == {"f": b"x", "g": b"x"}
            puts = {entry.key: entry.mtime_ns for entry in read_puts(world.state, "b", "")}
            assert puts["g"] == clamped_ns(wanted["g"], DATE_NS_MAX)
        async with world.mounted(attributes="always") as mount:
            for path, time_ns in wanted.items():
                assert (await mount.stat(path)).st_mtime_ns == clamped_ns(time_ns)
            await mount.write("g", b"later")
            await mount.sync()
            assert world.files()["g"] == b"later"

    run()


def _far(moment: str) -> int:
    days = {"0001": -719162, "1650": -116878, "1690": -102268, "1969": -1, "2243": 99712}
    days |= {"2400": 157054, "9999": 2932532}
    return days[moment[:4]] * 86_400 * 10**9 + 5


@simulated
async def test_what_others_stored_as_a_time_does_no_harm(tmp_path: Path) -> None:
    world = World(tmp_path)
    values = ("1e300", "nan", "-1", "9" * 20, "-" + "9" * 20, "9" * 400, "0x1", "1.9999999999999")
    for number, value in enumerate(values):
        headers = ObjectHeaders(metadata={"mtime": value, "atime": value, "ctime": value})
        await world.s3.put(f"f{number}", b"x", headers)
    async with world.mounted(attributes="always") as mount:
        for number in range(len(values)):
            path = f"f{number}"
            assert TIME_NS_MIN <= (await mount.stat(path)).st_mtime_ns <= TIME_NS_MAX
            await mount.chmod(path, 0o600)
            await mount.change(path, b"y", 0)
        await mount.sync()
        assert set(world.files().values()) == {b"y"}


def test_dates_of_the_store_and_of_manifests_fit_into_64_bits() -> None:
    assert iso_date_ns("9999-12-31T23:59:59.999Z") == DATE_NS_MAX
    assert http_date_ns("Fri, 31 Dec 9999 23:59:59 GMT") == DATE_NS_MAX
    assert http_date_ns("Mon, 01 Jan 0001 00:00:00 GMT") == TIME_NS_MIN
    assert parse_time("9999-12-31T23:59:59Z", 0) == DATE_NS_MAX
    assert parse_time("0001-01-01", 0) == TIME_NS_MIN
    assert parse_time(format_time(DATE_NS_MAX), 0) == DATE_NS_MAX
