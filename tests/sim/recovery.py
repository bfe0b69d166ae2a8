"""After a kill or a power cut: is there what must be there? From then on that is how it is."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from tests.sim.model import File, Tree, as_paths, brief
from tests.sim.mount import Mount
from tests.sim.program import Program, Wrong

T = TypeVar("T")


async def recover(program: Program, mount: Mount, *, is_sent: bool) -> None:
    """After a kill: is there what must be there? From now on that is the tree."""
    program.begin(mount)
    program.may_be = program.may_be or [program.tree]
    if is_sent:
        await _step(program, "wait until all is in S3", mount.sync)
        found = as_paths(mount.world.contents(), program.top)
    else:
        found = await _step(program, "look after the kill", program.seen)
    for tree in program.may_be:
        wrong = tree.differences(found, after_crash=True)
        if not wrong:
            break
    else:
        where = "in S3" if is_sent else "in the mount"
        raise Wrong(f"after the kill, {where}: {'; '.join(wrong)}")
    for path, file in tree.files.items():
        found_stat = await _step(program, f"stat {path}", partial(mount.stat, path))
        mode = stat.S_IMODE(found_stat.st_mode)
        others = [each.files[path] for each in program.may_be if path in each.files]
        if all(mode not in (other.mode, other.stable_mode) for other in [file, *others]):
            raise Wrong(f"after the kill {path} has mode {mode:o}, must be {file.mode:o}")
        file.mode = mode
    tree.adopt(found)
    if tree is program.tree:
        program.ledger.follow(tree)
    else:
        program.ledger.clear()
    program.known.update(file.now for file in tree.files.values())
    program.tree, program.may_be = tree, []


async def recover_from_power_cut(program: Program, mount: Mount, discarded: set[str]) -> None:
    """Is there what fsync() returned for? All that is found is how it is, from now on.

    ``discarded`` are the keys of unsynced changes that could not be sent.
    """
    program.begin(mount)
    for later in program.may_be[1:]:
        program.ledger.may_have_become(later, program.tree)
    program.may_be = [program.tree]
    await _step(program, "wait until all is in S3", mount.sync)
    found = await _step(program, "look after the power cut", program.seen)
    broken = program.ledger.broken(found, discarded)
    if broken:
        seen = {path: None if data is None else brief(data) for path, data in found.items()}
        raise Wrong(f"after the power cut there is not {'; nor '.join(broken)}; but {seen}")
    in_s3 = as_paths(mount.world.contents(), program.top)
    for path, data in in_s3.items():
        shown = found.get(path, b"nothing")
        if shown != data:
            told = [each if each is None else brief(each) for each in (shown, data)]
            raise Wrong(f"after the power cut {path} is {told[0]} in the mount, {told[1]} in S3")
    program.ledger.clear()
    program.tree = Tree(program.top)
    program.tree.folders = {path for path, data in found.items() if data is None}
    program.implied = program.tree.folders - set(in_s3)
    for path, data in found.items():
        if data is not None:
            there = await _step(program, f"stat {path}", partial(mount.stat, path))
            mode = stat.S_IMODE(there.st_mode)
            is_link = stat.S_ISLNK(there.st_mode)
            program.tree.files[path] = File(data, data, [], mode, mode, is_link)
            program.known.add(data)
    program.may_be = []


async def _step(program: Program, what: str, perform: Callable[[], Awaitable[T]]) -> T:
    trees, tree = program.may_be, program.tree
    try:
        return await program.step(what, perform)
    finally:
        program.may_be, program.tree = trees, tree
