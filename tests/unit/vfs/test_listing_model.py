"""Whatever happened here and elsewhere, and however little room there is: what is shown is what there is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from s3mount.errors import S3MountError
from tests.sim.mount import Mount
from tests.sim.world import World, simulated
from tests.unit.vfs.scripted import Script

FOLDERS = [f"t/{a}{b}" for a in "abc" for b in ("", "-x", "/y", "/y.z/q")]
PLACES = [f"{folder}/{name}" for folder in FOLDERS for name in ("f", "g", "a", "y.txt")]
STEP = st.one_of(
    st.tuples(st.just("theirs"), st.sampled_from(PLACES)),
    st.tuples(st.just("gone"), st.sampled_from(PLACES)),
    st.tuples(st.just("ours"), st.sampled_from(PLACES)),
    st.tuples(st.just("unlink"), st.sampled_from(PLACES)),
    st.tuples(st.just("look"), st.sampled_from(PLACES)),
    st.tuples(st.just("walk"), st.just("t")),
    st.tuples(st.just("refresh"), st.sampled_from(["", "t", *FOLDERS])),
    st.tuples(st.just("wait"), st.sampled_from(["0.01", "0.3", "1.5"])),
)


async def step(world: World, mount: Mount, what: str, place: str, number: int) -> None:
    data = f"{what} {number}".encode()
    if what == "theirs":
        await world.foreign_put(place, data)
    elif what == "gone":
        await world.s3.delete(place)
    elif what == "ours":
        if await mount.exists(place.rpartition("/")[0]) and not await mount.exists(place):
            await mount.write(place, data)
    elif what == "unlink":
        if await mount.exists(place):
            await mount.unlink(place)
    elif what == "look":
        await mount.exists(place)
    elif what == "walk":
        if await mount.exists(place):
            await mount.tree(place)
    elif what == "refresh":
        await mount.fs.refresh([place])
    else:
        await trio.sleep(float(place))


def shown(world: World) -> dict[str, bytes | None]:
    """Every path that the bucket's keys imply."""
    found: dict[str, bytes | None] = dict(world.files())
    for key in world.contents():
        parts = key.split("/")[:-1]
        found |= {"/".join(parts[: number + 1]): None for number in range(len(parts))}
    return found


@pytest.mark.parametrize("bytes_max", [0, 1 << 30])
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEP, max_size=25))
def test_what_is_shown_is_what_there_is(bytes_max: int, steps: list[tuple[str, str]]) -> None:
    @simulated
    async def run(folder: Path) -> None:
        world = World(folder, faults=Script(latency_s=0.02))
        for place in PLACES[::2]:
            await world.foreign_put(place, b"first")
        async with world.mounted(upload_delay_s=0.1) as mount:
            mount.fs.state.nodes.bytes_max = bytes_max
            for number, (what, place) in enumerate(steps):
                try:
                    await step(world, mount, what, place, number)
                except (OSError, S3MountError):
                    # It was replaced meanwhile: a program would be told so.
                    continue
            await mount.sync()
            await trio.sleep(2)
            found: dict[str, Any] = await mount.tree()
            assert found == shown(world)
            if bytes_max == 0:
                assert mount.fs.state.nodes.dropped

    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
