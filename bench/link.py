"""A slow, long and lossy line between two network namespaces, for one machine with root.

A process holds a tunnel device in each of two namespaces and hands packets from one to the other: each
after its turn at the line's rate and half a round trip, unless it is lost or the queue before the line is
full. What runs at both ends is the kernel's own TCP; nothing but the line is made up. (Linux has netem for this,
where the kernel was built with it.)

The near end is ``NEAR``, the far end ``FAR``; a command at the near end begins with ``Line.near``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self

NEAR = "10.77.0.1"
FAR = "10.77.0.2"
CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES_MAX = 65536
PACKETS_AT_ONCE = 64
START_TIMEOUT_S = 10.0


class Conditions(NamedTuple):
    """A line: its round trip, the share of packets lost each way, bits a second each way, and its queue."""

    rtt_ms: float = 50.0
    loss: float = 0.0
    mbit: float = 20.0
    queue_ms: float = 200.0


class _Way:
    """One direction: packets in order of the time at which they are due."""

    def __init__(self, source: int, sink: int, line: Conditions, seed: int) -> None:
        self.source = source
        self._sink = sink
        self._bytes_per_s = line.mbit * 125e3
        self._one_way_s = line.rtt_ms / 2e3
        self._queue_s = line.queue_ms / 1e3
        self._loss = line.loss
        self._chance = random.Random(seed)
        self._free_s = 0.0
        self._on_line: deque[tuple[float, bytes]] = deque()

    def take(self, now_s: float) -> None:
        """Packets that were sent, onto the line."""
        for _ in range(PACKETS_AT_ONCE):
            try:
                packet = os.read(self.source, PACKET_BYTES_MAX)
            except BlockingIOError:
                return
            begins_s = max(self._free_s, now_s)
            if begins_s - now_s > self._queue_s or self._chance.random() < self._loss:
                continue
            self._free_s = begins_s + len(packet) / self._bytes_per_s
            self._on_line.append((self._free_s + self._one_way_s, packet))

    def deliver(self, now_s: float) -> None:
        """What is due."""
        while self._on_line and self._on_line[0][0] <= now_s:
            with contextlib.suppress(BlockingIOError):
                os.write(self._sink, self._on_line.popleft()[1])

    @property
    def due_s(self) -> float:
        """When the next packet is."""
        return self._on_line[0][0] if self._on_line else float("inf")


def _new_namespace(address: str) -> tuple[int, int]:
    """Make a namespace with a tunnel device in it; descriptors of both. This process is in it then."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no network namespace can be made")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"line0", IFF_TUN | IFF_NO_PI))
    for words in (
        "link set lo up",
        f"addr add {address}/24 dev line0",
        "link set line0 up txqueuelen 10000",
    ):
        subprocess.run(["ip", *words.split()], check=True, timeout=START_TIMEOUT_S)
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC), device


def _forward(ways: tuple[_Way, _Way]) -> None:
    """Until standard input ends."""
    poller = select.poll()
    for fd in (sys.stdin.fileno(), *(way.source for way in ways)):
        poller.register(fd, select.POLLIN)
    while True:
        wait_s = min(way.due_s for way in ways) - time.monotonic()
        select.select(
            [sys.stdin, *(way.source for way in ways)], [], [], min(1.0, max(0.0, wait_s))
        )
        ready = {fd for fd, _ in poller.poll(0)}
        if sys.stdin.fileno() in ready:
            return
        now_s = time.monotonic()
        for way in ways:
            if way.source in ready:
                way.take(now_s)
            way.deliver(now_s)


class Line:
    """The line and its namespaces, from construction until ``close`` (repeatable). Raises OSError."""

    def __init__(self, conditions: Conditions, seed: int = 1) -> None:
        words = [
            f"--{name.replace('_', '-')}={value}" for name, value in conditions._asdict().items()
        ]
        self._process = subprocess.Popen(
            [sys.executable, __file__, *words, f"--seed={seed}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        told = self._process.stdout.readline().split() if ready else []
        if len(told) != 2:
            self._process.kill()
            _, said = self._process.communicate()
            reason = said.decode(errors="replace").strip().rpartition("\n")[2]
            raise OSError(f"no line between namespaces: {reason}")
        near, far = (f"/proc/{self._process.pid}/fd/{int(fd)}" for fd in told)
        self._far = far
        self.near = ["nsenter", f"--net={near}", "--"]
        """What a command begins with that runs at the near end."""
        self.far = ["nsenter", f"--net={far}", "--"]

    @contextlib.contextmanager
    def _at_far_end(self) -> Iterator[None]:
        """What this thread opens meanwhile is at the far end."""
        libc = ctypes.CDLL(None, use_errno=True)
        ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        theirs = os.open(self._far, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(theirs, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "the far end cannot be entered")
            yield
            if libc.setns(ours, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "the far end cannot be left")
        finally:
            os.close(ours)
            os.close(theirs)

    def listen(self) -> socket.socket:
        """A socket that listens at the far end, of a server here."""
        with self._at_far_end():
            return socket.create_server((FAR, 0), backlog=512)

    def close(self) -> None:
        """End it, and with it all connections through it."""
        if self._process.returncode is None:
            self._process.communicate(timeout=START_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def main() -> int:
    """One line until standard input ends; the descriptors of both namespaces are the only output."""
    parser = argparse.ArgumentParser(prog="link.py", description=(__doc__ or "").split("\n")[0])
    for name, default in Conditions()._asdict().items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=default)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    line = Conditions(options.rtt_ms, options.loss, options.mbit, options.queue_ms)
    far_namespace, far = _new_namespace(FAR)
    near_namespace, near = _new_namespace(NEAR)
    print(near_namespace, far_namespace, flush=True)
    _forward((_Way(near, far, line, options.seed), _Way(far, near, line, options.seed + 1)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
