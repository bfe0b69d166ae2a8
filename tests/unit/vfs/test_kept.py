"""What others stored with an object outlives what is done to it here."""

from __future__ import annotations

from pathlib import Path

import pytest

from s3mount.refs import ObjectHeaders
from tests.sim.world import PART_BYTES, World, simulated

NOTES = {
    "UTF-8": "Grüße à Äé".encode().decode("latin-1"),
    "latin-1": "Gr\xfc\xdfe \xa0",
    "encoded word": "=?UTF-8?B?R3LDvMOfZQ==?=",
    "long": "x" * (2048 - len("note") - 10),
}


@pytest.mark.parametrize("kind", NOTES)
@pytest.mark.parametrize("act", ["chmod", "write", "append", "append to a large one", "rename"])
@simulated
async def test_metadata_in_any_bytes_and_up_to_the_limit(
    tmp_path: Path, act: str, kind: str
) -> None:
    world = World(tmp_path)
    size = 3 * PART_BYTES if "large" in act else 10
    note = NOTES[kind]
    await world.s3.put("f", b"x" * size, ObjectHeaders(metadata={"note": note}))
    async with world.mounted() as mount:
        if act == "chmod":
            await mount.chmod("f", 0o600)
        elif act == "write":
            await mount.write("f", b"other")
        elif act == "rename":
            await mount.rename("f", "g")
        else:
            await mount.change("f", b"more", size)
        await mount.sync()
        key = "g" if act == "rename" else "f"
        assert (await world.metadata(key))["note"] == note
