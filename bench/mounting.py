"""The life of one mount: started, ready, remounted with or without its caches, always taken down."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

from bench.process import StepFailed, Stragglers, TreeUsage, run, tree
from bench.tools import Site, Tool

READY_TIMEOUT_S = 60.0
UNMOUNT_TIMEOUT_S = 120.0
END_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 10.0
POLL_S = 0.01
LOG_TAIL_CHARS = 2000
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def drop_page_cache() -> bool:
    """Write dirty pages out and drop clean ones, the machine over; False where not permitted."""
    os.sync()
    try:
        DROP_CACHES.write_text("1")
    except PermissionError:
        return False
    return True


def is_mounted(path: Path) -> bool:
    """Whether something is mounted there, by the mount table: the mount itself is not touched."""
    wanted = str(path)
    with open("/proc/self/mountinfo") as table:
        return any(line.split()[4] == wanted for line in table)


class Mount:
    """One tool on one site."""

    def __init__(self, tool: Tool, site: Site) -> None:
        self.tool = tool
        self.site = site
        self.stragglers = Stragglers()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> float:
        """Mount and wait until the root answers; return the seconds that took.

        Raises StepFailed with the end of the tool's log if it ends or does not answer in time.
        """
        site = self.site
        for folder in (site.mountpoint, site.cache_dir, site.state_dir):
            folder.mkdir(parents=True, exist_ok=True)
        start_s = time.perf_counter()
        self._log = site.log_path.open("ab")
        self._process = subprocess.Popen(
            self.tool.argv(site),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=self.tool.environment(site),
            start_new_session=True,
        )
        while not is_mounted(site.mountpoint):
            if self._process.poll() is not None:
                raise StepFailed(f"mount ended with {self._process.returncode}: {self.log_tail()}")
            if time.perf_counter() - start_s > READY_TIMEOUT_S:
                raise StepFailed(f"not mounted after {READY_TIMEOUT_S:g} s: {self.log_tail()}")
            time.sleep(POLL_S)
        run(
            ["stat", "-t", str(site.mountpoint)],
            timeout_s=READY_TIMEOUT_S,
            stragglers=self.stragglers,
        )
        return time.perf_counter() - start_s

    def usage(self) -> TreeUsage:
        """CPU and memory of the tool's processes from now on."""
        if self._process is None:
            raise StepFailed("not mounted")
        return TreeUsage(self._process.pid)

    def remount(self) -> None:
        """Unmount, drop the page cache, mount again: what the tool keeps on disk stays."""
        self.stop()
        drop_page_cache()
        self.start()

    def log_tail(self) -> str:
        """The end of what the tool said."""
        try:
            return self.site.log_path.read_text(errors="replace")[-LOG_TAIL_CHARS:].strip()
        except FileNotFoundError:
            return ""

    def stop(self) -> None:
        """Unmount, by force if need be, and see the tool's processes end. Repeatable.

        Raises StepFailed when force was needed or a killed command is still stuck.
        """
        if self._process is None:
            return
        trouble = ""
        if is_mounted(self.site.mountpoint):
            try:
                self._unmount()
            except StepFailed as error:
                trouble = str(error)
        try:
            self._process.wait(KILL_TIMEOUT_S if trouble else END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            trouble = trouble or f"still running {END_TIMEOUT_S:g} s after it was unmounted"
            self._end_by_force()
        self._process = None
        if self._log is not None:
            self._log.close()
        if is_mounted(self.site.mountpoint):
            subprocess.run(["fusermount3", "-u", "-z", str(self.site.mountpoint)], check=False)
        stuck = self.stragglers.reap(KILL_TIMEOUT_S)
        if stuck:
            trouble = f"{trouble}; commands {stuck} hang"
        if trouble:
            raise StepFailed(f"unmount of {self.tool.name}: {trouble}")

    def _unmount(self) -> None:
        """Unmount; busy is tried again for a while, as a just ended reader may still hold it."""
        give_up_s = time.monotonic() + UNMOUNT_TIMEOUT_S
        while True:
            try:
                run(["fusermount3", "-u", str(self.site.mountpoint)], timeout_s=UNMOUNT_TIMEOUT_S)
            except StepFailed as error:
                if "busy" not in str(error).lower() or time.monotonic() > give_up_s:
                    raise
                time.sleep(0.2)
            else:
                return

    def _end_by_force(self) -> None:
        assert self._process is not None
        pids = list(tree(self._process.pid))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            try:
                self._process.wait(KILL_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                continue
            if number == signal.SIGKILL:
                return

    def forget_files(self) -> None:
        """Delete caches, state and the mount point of an unmounted site."""
        if is_mounted(self.site.mountpoint):
            raise StepFailed(f"{self.site.mountpoint} is still mounted")
        for folder in (self.site.cache_dir, self.site.state_dir, self.site.mountpoint):
            shutil.rmtree(folder, ignore_errors=True)
