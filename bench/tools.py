"""The tools under test: how each is started on a bucket. One class a tool, flags with their reasons."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from bench.server import Endpoint

ROOT = Path(__file__).resolve().parent.parent
VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Site:
    """One mount's bucket and its places on this machine."""

    bucket: str
    endpoint: Endpoint
    mountpoint: Path
    cache_dir: Path
    state_dir: Path
    log_path: Path


def find_program(name: str) -> str | None:
    """``name`` beside this Python (a virtual environment's) or on the PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=beside + os.pathsep + os.environ.get("PATH", os.defpath))


class Tool(ABC):
    """A program that shows a bucket as a folder, run in the foreground."""

    name: ClassVar[str]
    program: ClassVar[str]
    version_argument: ClassVar[str] = "--version"

    @property
    def found(self) -> list[str] | None:
        """The command to run it, None where it is not installed."""
        path = find_program(self.program)
        return None if path is None else [path]

    def argv(self, site: Site) -> list[str]:
        """The whole command that mounts ``site`` and stays in the foreground."""
        command = self.found
        if command is None:
            raise FileNotFoundError(f"{self.program} is not installed")
        return command + self.arguments(site)

    @abstractmethod
    def arguments(self, site: Site) -> list[str]:
        """What comes after the command."""

    def environment(self, site: Site) -> dict[str, str]:
        """Environment for the mounting process."""
        return site.endpoint.environment()

    def version(self) -> str:
        """The first line that it says about itself."""
        command = self.found
        if command is None:
            return "not installed"
        try:
            done = subprocess.run(
                [*command, self.version_argument],
                capture_output=True,
                text=True,
                timeout=VERSION_TIMEOUT_S,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"unknown ({error})"
        return ((done.stdout or done.stderr).strip().splitlines() or ["unknown"])[0]


class S3Mount(Tool):
    """This project, as it comes: no tuning flags."""

    name = "s3mount"
    program = "s3mount"

    @property
    def found(self) -> list[str] | None:
        """The tree that this benchmark belongs to, never another installed version."""
        return [sys.executable, "-m", "s3mount"]

    def arguments(self, site: Site) -> list[str]:
        return [
            site.bucket,
            str(site.mountpoint),
            "--foreground",
            *("--endpoint-url", site.endpoint.url),
            "--path-style",
            *("--cache-dir", str(site.cache_dir)),
            *("--state-dir", str(site.state_dir)),
        ]

    def environment(self, site: Site) -> dict[str, str]:
        return super().environment(site) | {"PYTHONPATH": str(ROOT)}


class Rclone(Tool):
    """rclone mount with its full cache, the only mode that takes every kind of write.

    Uploads start at close (--vfs-write-back 0; its default waits 5 s) with as many at a time as
    s3mount's default. Reads use parallel streams, as its manual advises for object stores.
    """

    name = "rclone"
    program = "rclone"
    version_argument = "version"

    def arguments(self, site: Site) -> list[str]:
        return [
            "mount",
            f":s3:{site.bucket}",
            str(site.mountpoint),
            *("--cache-dir", str(site.cache_dir)),
            *("--vfs-cache-mode", "full"),
            *("--vfs-write-back", "0s"),
            *("--vfs-read-chunk-streams", "16", "--vfs-read-chunk-size", "4M"),
            *("--transfers", "16"),
        ]

    def environment(self, site: Site) -> dict[str, str]:
        return super().environment(site) | self.settings(site.endpoint)

    @staticmethod
    def settings(endpoint: Endpoint) -> dict[str, str]:
        """The environment that makes ``:s3:`` this endpoint."""
        return {
            "RCLONE_CONFIG": "/dev/null",
            "RCLONE_S3_PROVIDER": "Other",
            "RCLONE_S3_ENV_AUTH": "true",
            "RCLONE_S3_ENDPOINT": endpoint.url,
            "RCLONE_S3_REGION": endpoint.region,
            "RCLONE_S3_FORCE_PATH_STYLE": "true",
            "RCLONE_S3_NO_CHECK_BUCKET": "true",
        }


class S3fs(Tool):
    """s3fs with its disk cache, more parts at a time than its default of 5, room for all stats."""

    name = "s3fs"
    program = "s3fs"

    def arguments(self, site: Site) -> list[str]:
        options = [
            f"url={site.endpoint.url}",
            f"endpoint={site.endpoint.region}",
            "use_path_request_style",
            f"use_cache={site.cache_dir}",
            "parallel_count=16",
            "max_stat_cache_size=200000",
        ]
        return [site.bucket, str(site.mountpoint), "-f", "-o", ",".join(options)]

    def environment(self, site: Site) -> dict[str, str]:
        endpoint = site.endpoint
        return super().environment(site) | {
            "AWSACCESSKEYID": endpoint.access_key,
            "AWSSECRETACCESSKEY": endpoint.secret_key,
        }


class Mountpoint(Tool):
    """mountpoint-s3 with its disk cache and with the writes that it allows."""

    name = "mountpoint"
    program = "mount-s3"

    def arguments(self, site: Site) -> list[str]:
        return [
            site.bucket,
            str(site.mountpoint),
            "--foreground",
            *("--endpoint-url", site.endpoint.url),
            *("--region", site.endpoint.region),
            "--force-path-style",
            *("--cache", str(site.cache_dir)),
            "--allow-delete",
            "--allow-overwrite",
        ]


class Goofys(Tool):
    """goofys as it comes; it has no disk cache of its own."""

    name = "goofys"
    program = "goofys"

    def arguments(self, site: Site) -> list[str]:
        return [
            "-f",
            *("--endpoint", site.endpoint.url),
            *("--region", site.endpoint.region),
            site.bucket,
            str(site.mountpoint),
        ]


class Geesefs(Tool):
    """geesefs with the listing that servers other than its maker's know, and its disk cache."""

    name = "geesefs"
    program = "geesefs"

    def arguments(self, site: Site) -> list[str]:
        return [
            "-f",
            *("--endpoint", site.endpoint.url),
            *("--region", site.endpoint.region),
            *("--list-type", "2"),
            *("--cache", str(site.cache_dir)),
            site.bucket,
            str(site.mountpoint),
        ]


MOUNTS: tuple[Tool, ...] = (S3Mount(), Rclone(), S3fs(), Mountpoint(), Goofys(), Geesefs())
RAW = "s5cmd"
"""The tool without a mount: what the server and this machine give at best."""


def raw_version() -> str:
    """s5cmd's version."""
    command = find_program(RAW)
    if command is None:
        return "not installed"
    done = subprocess.run(
        [command, "version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S
    )
    return done.stdout.strip() or "unknown"
