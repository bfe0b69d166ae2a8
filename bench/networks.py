"""What bad networks cost, and what transfers cost others. ``python -m bench networks``, as root.

``s3mount cp`` over a line between two network namespaces (``bench/link.py``): long, slow, with losses, with requests
that hang. Deadlines as they come are held against a fixed 60 s. And beside one foreign TCP stream that fills the
line: how much that keeps.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

from bench.cli import add_server_flags, facts_of_machine, server, told
from bench.lab import MIB
from bench.link import FAR, Conditions, Line
from bench.process import StepFailed, run
from bench.runner import new_data_bucket, work_folder
from bench.server import Endpoint, Truth
from bench.tools import ROOT
from tests.servers.faulty import BadDays, Fate, FaultyRelay

RESULTS = Path("build") / "bench-networks"
SMALL_BYTES = 64 << 10
FIXED = "base_s=60,answer_start_s=60,answer_min_s=60,answer_max_s=60,backoff=1,connect_s=60"
"""A deadline of 60 s for each step, as boto3's read time-out."""
FOREIGN_S = 20.0
FOREIGN_START_S = 3.0
PIECE_BYTES = 64 << 10


@dataclass(frozen=True)
class Case:
    """One line, and what befalls requests on it."""

    title: str
    line: Conditions
    fates: tuple[Fate, ...] = ()
    share: float = 0.0


CASES = (
    Case("nothing else", Conditions()),
    Case("1% of packets lost", Conditions(loss=0.01)),
    Case("3% of packets lost", Conditions(loss=0.03)),
    Case("2% of requests hang", Conditions(), (Fate.SWALLOW_ANSWER,), 0.02),
    Case("2% of bodies stall half-way", Conditions(), (Fate.STALL_RECEIVING,), 0.02),
    Case(
        "2% of requests hang, 1% of packets lost",
        Conditions(loss=0.01),
        (Fate.SWALLOW_ANSWER,),
        0.02,
    ),
)


@contextmanager
def far_away(endpoint: Endpoint, line: Line, case: Case, seed: int) -> Iterator[Endpoint]:
    """The server at the far end of the line."""
    relay = FaultyRelay(endpoint.url, connections_max=512)
    if case.fates:
        relay.decide = BadDays(case.fates, share=case.share, seed=seed)
    listener = line.listen()
    relay.start(listener)
    try:
        yield replace(endpoint, url=f"http://{FAR}:{listener.getsockname()[1]}")
    finally:
        relay.close()


class Stream:
    """A foreign TCP connection over the line that moves zeros as fast as TCP does, one way."""

    def __init__(self, line: Line, *, is_up: bool) -> None:
        self._listener = line.listen()
        self._is_up = is_up
        threading.Thread(target=self._serve, daemon=True).start()
        port = self._listener.getsockname()[1]
        self._process = subprocess.Popen(
            [*line.near, sys.executable, "-m", "bench.networks", FAR, str(port), str(int(is_up))],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
        )
        self._moved = 0

    def _serve(self) -> None:
        peer, _ = self._listener.accept()
        with peer:
            zeros = bytes(PIECE_BYTES)
            try:
                while True:
                    n = len(peer.recv(PIECE_BYTES)) if self._is_up else peer.send(zeros)
                    if not n:
                        return
                    self._moved += n
            except OSError:
                return

    def rate(self, seconds: float) -> float:
        """Bytes a second over that time from now on."""
        before, began_s = self._moved, time.monotonic()
        time.sleep(seconds)
        return (self._moved - before) / (time.monotonic() - began_s)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._listener.close()


def foreign_end(host: str, port: int, *, is_up: bool) -> None:
    """The stream's near end, until it is killed."""
    with socket.create_connection((host, port)) as peer:
        zeros = bytes(PIECE_BYTES)
        while peer.send(zeros) if is_up else peer.recv(PIECE_BYTES):
            continue


@dataclass
class Bench:
    """Measures on one server, which holds the objects that are fetched."""

    endpoint: Endpoint
    folder: Path
    bucket: str
    files: int
    runs: int
    timeout_s: float
    small: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    beside: dict[str, list[float]] = field(default_factory=dict)
    alone: dict[str, list[float]] = field(default_factory=dict)

    def fill(self) -> None:
        """Make the files, and put them into S3."""
        small = self.folder / "small"
        small.mkdir()
        for number in range(self.files):
            (small / f"f{number:04}").write_bytes(os.urandom(SMALL_BYTES))
        for name, mib in (("large", 256), ("middle", 24)):
            (self.folder / name).write_bytes(os.urandom(mib * MIB))
        for name in ("small/", "large", "middle"):
            self._cp([], self.endpoint, f"{self.folder}/{name}", self._url(name))

    def _url(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"

    def _command(self, endpoint: Endpoint, source: str, target: str) -> list[str]:
        common = ["--endpoint-url", endpoint.url, "--path-style", "--quiet"]
        return [sys.executable, "-m", "s3mount", "cp", *common, source, target]

    def _environment(self) -> dict[str, str]:
        # A new state folder each time: what an earlier run learnt of the endpoint would help this one.
        state = tempfile.mkdtemp(dir=self.folder)
        return self.endpoint.environment() | {
            "PYTHONPATH": str(ROOT),
            "XDG_STATE_HOME": state,
            "XDG_CACHE_HOME": state,
        }

    def _cp(
        self, near: list[str], endpoint: Endpoint, source: str, target: str, *more: str
    ) -> float:
        command = [*near, *self._command(endpoint, source, target), *more]
        return run(command, timeout_s=self.timeout_s, environment=self._environment()).seconds

    def small_files(self, case: Case) -> None:
        """The small files down and up, with deadlines as they come and with fixed ones."""
        for number in range(self.runs):
            for name, options in (("adaptive", []), ("fixed", ["--timeouts", FIXED])):
                for way in ("down", "up"):
                    target = Path(tempfile.mkdtemp(dir=self.folder))
                    there, here = self._url("small/"), str(self.folder / "small") + "/"
                    places = (there, f"{target}/") if way == "down" else (here, self._url("up/"))
                    with (
                        Line(case.line, number) as line,
                        far_away(self.endpoint, line, case, number) as seen,
                    ):
                        took_s = self._cp(line.near, seen, *places, *options)
                    shutil.rmtree(target)
                    found = self.small.setdefault(case.title, {})
                    found.setdefault(f"{way} {name}", []).append(took_s)
                    print(f"{case.title}: {way}, {name}: {took_s:.1f} s", flush=True)

    def beside_a_stream(self) -> None:
        """The large file, and a foreign stream the same way: who gets what."""
        for way in ("down", "up"):
            for name, options in (("as it comes", []), ("--background", ["--background"])):
                title = f"{way}, {name}"
                for number in range(self.runs):
                    share = self._share(way == "up", options, number)
                    self.beside.setdefault(title, []).append(share)
                    rate = self._rate(way == "up", options, number)
                    self.alone.setdefault(title, []).append(rate)
                    print(f"{title}: foreign {share:.0%}, alone {rate:.2f} MB/s", flush=True)

    def _rate(self, is_up: bool, options: list[str], seed: int) -> float:
        """MB/s of a file on the free line, from the command's start to its end."""
        middle = str(self.folder / "middle")
        target = Path(tempfile.mkdtemp(dir=self.folder))
        places = (middle, self._url("up-middle")) if is_up else (self._url("middle"), f"{target}/")
        case = Case("", Conditions())
        with Line(case.line, seed) as line, far_away(self.endpoint, line, case, seed) as seen:
            took_s = self._cp(line.near, seen, *places, *options)
        shutil.rmtree(target)
        return 24 * MIB / 1e6 / took_s

    def _share(self, is_up: bool, options: list[str], seed: int) -> float:
        large = str(self.folder / "large")
        target = Path(tempfile.mkdtemp(dir=self.folder))
        places = (large, self._url("up-large")) if is_up else (self._url("large"), f"{target}/")
        case = Case("", Conditions())
        with Line(case.line, seed) as line, far_away(self.endpoint, line, case, seed) as seen:
            stream = Stream(line, is_up=is_up)
            command = [*line.near, *self._command(seen, *places), *options]
            try:
                stream.rate(FOREIGN_START_S)
                alone = stream.rate(FOREIGN_S / 2)
                process = subprocess.Popen(command, env=self._environment())
                try:
                    stream.rate(FOREIGN_START_S)
                    share = stream.rate(FOREIGN_S) / alone
                    if process.poll() is not None:
                        raise StepFailed("s3mount cp ended while the streams were measured")
                finally:
                    process.kill()
                    process.wait()
            finally:
                stream.close()
        shutil.rmtree(target)
        return share

    def table(self) -> str:
        """What was measured, in Markdown."""
        least = f"{self.files} x {SMALL_BYTES >> 10} KiB"
        lines = [
            f"`s3mount cp` of {least} over 50 ms and 20 Mbit/s, seconds; *fixed* is a deadline of 60 s a step:",
            "",
            "| the line | down | down, fixed | sooner | up | up, fixed | sooner |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for title, found in self.small.items():
            cells = []
            for way in ("down", "up"):
                ours, fixed = (median(found[f"{way} {name}"]) for name in ("adaptive", "fixed"))
                cells += [f"{ours:.1f}", f"{fixed:.1f}", f"{fixed / ours:.1f}x"]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines += [
            "",
            "What one foreign TCP stream keeps of what it has alone beside `s3mount cp` of a large file the same way:",
            "",
            "| s3mount | the stream keeps | s3mount with 24 MiB on the free line, MB/s |",
            "|---|---:|---:|",
        ]
        lines += [
            f"| {title} | {median(shares):.0%} | {median(self.alone[title]):.2f} |"
            for title, shares in self.beside.items()
        ]
        return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """All flags; --help is their documentation."""
    made = argparse.ArgumentParser(prog="python -m bench networks", description=__doc__)
    add_server_flags(made)
    made.add_argument("--only", choices=("small", "beside"), help="half of it")
    made.add_argument("--files", type=int, default=200, help="small files (%(default)s)")
    made.add_argument("--runs", type=int, default=3, help="medians over so many (%(default)s)")
    made.add_argument("--step-timeout", type=float, default=900.0, metavar="S")
    made.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()))
    made.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    return made


def measure(options: argparse.Namespace) -> Sequence[object]:
    """Run everything that the options ask for and write the results."""
    if os.geteuid() != 0:
        raise StepFailed("network namespaces need root")
    folder = work_folder(options.work_dir)
    try:
        with server(options, folder / options.server) as endpoint:
            truth, bucket = Truth(endpoint), new_data_bucket()
            truth.make_bucket(bucket)
            bench = Bench(
                endpoint, folder, bucket, options.files, options.runs, options.step_timeout
            )
            try:
                _rounds(bench, options)
            finally:
                truth.remove_bucket(bucket)
            return [*bench.small, *bench.beside]
    except OSError as error:
        raise StepFailed(str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rounds(bench: Bench, options: argparse.Namespace) -> None:
    facts = "".join(f"- {name}: {fact}\n" for name, fact in facts_of_machine(options).items())
    options.results.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        (options.results / "results.md").write_text(f"# Bad networks\n\n{facts}\n{bench.table()}")

    bench.fill()
    steps: list[Callable[[], None]] = []
    if options.only != "small":
        steps.append(bench.beside_a_stream)
    if options.only != "beside":
        steps += [partial(bench.small_files, case) for case in CASES]
    for step in steps:
        step()
        keep()


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all was measured, 2 for wrong flags or where no line can be made, 130 when interrupted."""
    return told(parser().parse_args(argv), measure)


if __name__ == "__main__":
    foreign_end(sys.argv[1], int(sys.argv[2]), is_up=sys.argv[3] == "1")
