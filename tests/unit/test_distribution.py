"""The wheel and the sdist hold all that s3mount is, and what is installed from them runs."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path

import click
import pytest

from s3mount.version import __version__

pytest.importorskip("hatchling", reason="make setup installs it")

TOP = Path(__file__).parents[2]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())


def build(source: Path, kind: str, folder: Path) -> Path:
    """The one file of its kind that the build backend makes of ``source``."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment, with the wheel that the sdist makes; what it needs comes from that of the tests."""
    top = tmp_path_factory.mktemp("distribution")
    sdist = build(TOP, "sdist", top / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(top, filter="data")
    wheel = build(top / sdist.name.removesuffix(".tar.gz"), "wheel", top / "wheel")
    place = top / "venv"
    venv.create(place, with_pip=False)
    site = next(place.glob("lib/python*/site-packages"))
    # Its packages alone: files that name other folders, as an editable install does, count only at the start.
    (site / "needed.pth").write_text(str(Path(click.__file__).parents[1]))
    installing = [sys.executable, "-m", "pip", "--python", str(place), "install", "--no-deps"]
    done = subprocess.run(
        [*installing, "--no-index", "--quiet", "--ignore-installed", str(wheel)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return place


def run(*words: str) -> str:
    """What it prints, far from the source tree."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd="/", env=clean, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_installed_runs(installed: Path) -> None:
    assert run(str(installed / "bin" / "s3mount"), "--version") == f"s3mount {__version__}\n"
    python = str(installed / "bin" / "python")
    assert run(python, "-c", "import s3mount; print(s3mount.__file__)").startswith(str(installed))
    assert "PATH|S3URL" in run(str(installed / "bin" / "s3mount"), "restore", "--help")
    for name in PROJECT["project"]["scripts"]:
        assert os.access(installed / "bin" / name, os.X_OK), name


def test_every_module_and_document_is_in_it(installed: Path) -> None:
    site = next(installed.glob("lib/python*/site-packages"))
    for source in [*(TOP / "s3mount").rglob("*.py"), TOP / "s3mount" / "py.typed"]:
        assert (site / source.relative_to(TOP)).is_file(), source
    shared = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    for source_name, target in shared.items():
        assert (installed / target).exists(), source_name


def test_the_build_backend_is_the_same_twice() -> None:
    (required,) = PROJECT["build-system"]["requires"]
    assert required in PROJECT["project"]["optional-dependencies"]["dev"]
    assert required in (TOP / "constraints.txt").read_text().splitlines()
