"""The command line of the benchmarks: ``python -m bench``."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from bench import report
from bench.lab import Lab, Scale, Sources
from bench.process import StepFailed
from bench.runner import Result, Runner, new_data_bucket, work_folder
from bench.server import Endpoint, Truth
from bench.tools import MOUNTS, RAW, Tool, raw_version
from bench.workloads import WORKLOADS, Workload
from s3mount.errors import S3MountError
from tests.servers.ceph import CephError, running_ceph
from tests.servers.localstack import running_localstack

RESULTS = Path("build") / "bench"


def add_server_flags(made: argparse.ArgumentParser) -> None:
    """The flags that say which server is measured on; ``server`` heeds them."""
    server = made.add_argument_group("server")
    server.add_argument(
        "--server",
        choices=("ceph", "localstack"),
        default="ceph",
        help="start this one for the run (%(default)s)",
    )
    server.add_argument("--tls", action="store_true", help="reach that by https, where it has it")
    server.add_argument("--endpoint-url", help="use the server there instead, addressed by path")
    server.add_argument("--access-key", default=os.environ.get("AWS_ACCESS_KEY_ID", ""))
    server.add_argument("--secret-key", default=os.environ.get("AWS_SECRET_ACCESS_KEY", ""))
    server.add_argument("--region", default="us-east-1")


def parser() -> argparse.ArgumentParser:
    """All flags; --help is their documentation."""
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure s3mount beside other S3 mounts and s5cmd, on one server in one run.",
    )
    add_server_flags(made)
    names = ",".join(workload.name for workload in WORKLOADS)
    tools = ",".join([*(tool.name for tool in MOUNTS), RAW])
    made.add_argument("--only", metavar="WORKLOADS", help=f"of {names}")
    made.add_argument("--tools", help=f"of {tools}; default: those that are installed")
    made.add_argument("--runs", type=int, default=3, help="medians over so many (3)")
    made.add_argument(
        "--rtt-ms", default="0,20", help="added round trips, one table each (%(default)s)"
    )
    made.add_argument("--size-mib", type=int, default=1024, help="the big file (%(default)s)")
    made.add_argument("--scale", type=float, default=1.0, help="factor on numbers of files")
    made.add_argument(
        "--step-timeout", type=float, default=300.0, metavar="S", help="of one step (%(default)s)"
    )
    made.add_argument("--work-dir", type=Path, default=Path(tempfile.gettempdir()))
    made.add_argument("--results", type=Path, default=RESULTS, help="folder (%(default)s)")
    return made


def chosen_tools(wanted: str | None) -> tuple[list[Tool], bool]:
    """The mounts to measure, and whether s5cmd too. Raises StepFailed for unknown or missing."""
    if wanted is None:
        return [tool for tool in MOUNTS if tool.found], raw_version() != "not installed"
    known = {tool.name: tool for tool in MOUNTS}
    names = wanted.split(",")
    for name in names:
        if name != RAW and name not in known:
            raise StepFailed(f"--tools {name}: not one of {', '.join([*known, RAW])}")
        if name != RAW and not known[name].found:
            raise StepFailed(f"--tools {name}: {known[name].program} is not installed")
    return [known[name] for name in names if name != RAW], RAW in names


def chosen_workloads(wanted: str | None) -> list[Workload]:
    """Those named, in the usual order. Raises StepFailed for an unknown name."""
    if wanted is None:
        return list(WORKLOADS)
    names = set(wanted.split(","))
    unknown = names - {workload.name for workload in WORKLOADS}
    if unknown:
        raise StepFailed(f"--only: no workload is named {', '.join(sorted(unknown))}")
    return [workload for workload in WORKLOADS if workload.name in names]


@contextmanager
def server(options: argparse.Namespace, folder: Path) -> Iterator[Endpoint]:
    """The server given by flags, or one of this run's own with its data below ``folder``."""
    if options.endpoint_url:
        yield Endpoint(options.endpoint_url, options.access_key, options.secret_key, options.region)
        return
    folder.mkdir()
    with ExitStack() as stack:
        try:
            if options.server == "ceph":
                started = stack.enter_context(running_ceph(folder))
            else:
                started = stack.enter_context(running_localstack(folder))
        except (CephError, S3MountError) as error:
            raise StepFailed(f"no {options.server}: {error}") from error
        url = started.https_url if options.tls else started.endpoint_url
        if url is None:
            raise StepFailed(f"--tls: {options.server} has no https address here")
        trusted = started.ca_bundle if options.tls else None
        yield Endpoint(url, started.access_key, started.secret_key, started.region, trusted)


def about(options: argparse.Namespace, tools: Sequence[Tool]) -> dict[str, object]:
    """What a reader needs to judge the numbers."""
    versions = {tool.name: tool.version() for tool in tools} | {RAW: raw_version()}
    return facts_of_machine(options) | {
        "versions": "; ".join(f"{name}: {version}" for name, version in versions.items()),
    }


def facts_of_machine(options: argparse.Namespace) -> dict[str, object]:
    """When, on what, and how often."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "server": (options.endpoint_url or options.server) + (" over TLS" if options.tls else ""),
        "machine": f"{os.cpu_count()} cores, kernel {platform.release()}, Python "
        f"{platform.python_version()}, load {os.getloadavg()[0]:.1f} at the start",
        "runs": options.runs,
        "page cache dropped": "yes" if os.geteuid() == 0 else "no (needs root)",
        "work folder": f"{new_file_us(options.work_dir):.0f} us for a new file of 4 KiB",
    }


def new_file_us(folder: Path, *, count: int = 1000) -> float:
    """Microseconds to make and write a small file in ``folder``, which all tools do for small objects."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        began_s = time.perf_counter()
        for number in range(count):
            Path(name, str(number)).write_bytes(bytes(4096))
        return (time.perf_counter() - began_s) / count * 1e6


def measure(options: argparse.Namespace) -> list[Result]:
    """Run everything that the options ask for and write the results."""
    tools, with_raw = chosen_tools(options.tools)
    workloads = chosen_workloads(options.only)
    scale = Scale(big_mib=options.size_mib).times(options.scale)
    rtts_ms = [float(word) for word in options.rtt_ms.split(",")]
    folder = work_folder(options.work_dir)
    try:
        with server(options, folder / options.server) as endpoint:
            facts = about(options, tools)

            def keep(results: list[Result]) -> None:
                report.write(options.results, results, workloads, scale, facts)

            lab = Lab(
                work_dir=folder,
                direct=endpoint,
                truth=Truth(endpoint),
                sources=Sources(folder / "sources", scale),
                data_bucket=new_data_bucket(),
                timeout_s=options.step_timeout,
            )
            runner = Runner(lab, tools, with_raw, workloads, options.runs, rtts_ms, keep)
            try:
                return runner.run()
            finally:
                keep(runner.results)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def interrupt(number: int, frame: FrameType | None) -> None:
    """Stop and clean up; further signals wait until that is done."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all was measured (cells may fail), 2 for wrong flags, 130 when interrupted."""
    return told(parser().parse_args(argv), measure)


def told(
    options: argparse.Namespace, measure: Callable[[argparse.Namespace], Sequence[object]]
) -> int:
    """Measure, print the tables or why there are none; the exit status."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, interrupt)
    try:
        results = measure(options)
    except StepFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bench: interrupted; what was measured is in {options.results}", file=sys.stderr)
        return 130
    print((options.results / "results.md").read_text())
    return 0 if results else 1
