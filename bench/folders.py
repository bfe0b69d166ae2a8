"""Tools that bring a bucket's present content into a local folder, and again when it is there."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.process import Finished, StepFailed, run
from bench.server import Endpoint
from bench.tools import RAW, ROOT, find_program


@dataclass(frozen=True)
class Job:
    """What is brought where. ``manifest`` names the versions that are current; ``cache_dir`` is empty at first."""

    endpoint: Endpoint
    bucket: str
    manifest: Path
    folder: Path
    cache_dir: Path
    timeout_s: float


class Program(ABC):
    """A command that ends by itself."""

    name: ClassVar[str]
    program: ClassVar[str]
    version_arguments: ClassVar[tuple[str, ...]] = ("--version",)

    @property
    def found(self) -> list[str] | None:
        """The command, None where it is not installed."""
        path = find_program(self.program)
        return None if path is None else [path]

    def version(self) -> str:
        """What it says about itself."""
        command = self.found
        if command is None:
            return "not installed"
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        done = run([*command, *self.version_arguments], timeout_s=20, environment=environment)
        return (done.stdout or done.stderr).strip().splitlines()[0]


class FolderTool(Program):
    """A command that makes a folder hold what the bucket holds."""

    @abstractmethod
    def arguments(self, job: Job) -> list[str]:
        """What comes after the command."""

    def environment(self, job: Job) -> dict[str, str]:
        """Environment for the command."""
        return job.endpoint.environment()

    def run(self, job: Job) -> Finished:
        """Run it to its end. Raises StepFailed."""
        command = self.found
        if command is None:
            raise StepFailed(f"{self.program} is not installed")
        return run(
            [*command, *self.arguments(job)],
            timeout_s=job.timeout_s,
            environment=self.environment(job),
        )


class Checkout(FolderTool):
    """``s3mount checkout`` of the manifest of current versions: no listing, exact versions."""

    name = "s3mount"
    program = "s3mount"

    @property
    def found(self) -> list[str] | None:
        """The tree that this benchmark belongs to."""
        return [sys.executable, "-m", "s3mount"]

    def arguments(self, job: Job) -> list[str]:
        return [
            "checkout",
            *(str(job.manifest), str(job.folder)),
            *("--endpoint-url", job.endpoint.url, "--path-style"),
            *("--cache-dir", str(job.cache_dir), "--quiet"),
        ]

    def environment(self, job: Job) -> dict[str, str]:
        return super().environment(job) | {"PYTHONPATH": str(ROOT)}


class S5cmdSync(FolderTool):
    """``s5cmd sync`` as it comes."""

    name = RAW
    program = RAW
    version_arguments = ("version",)

    def arguments(self, job: Job) -> list[str]:
        return [
            *("--endpoint-url", job.endpoint.url, "--log", "error"),
            *("sync", f"s3://{job.bucket}/*", f"{job.folder}/"),
        ]


class AwsSync(FolderTool):
    """``aws s3 sync`` as it comes."""

    name = "aws"
    program = "aws"

    def arguments(self, job: Job) -> list[str]:
        return [
            *("s3", "sync", f"s3://{job.bucket}", str(job.folder)),
            *("--endpoint-url", job.endpoint.url, "--only-show-errors"),
        ]


FOLDER_TOOLS: tuple[FolderTool, ...] = (Checkout(), S5cmdSync(), AwsSync())
