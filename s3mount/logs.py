"""Where a process writes what it has to say: a rotating file, or the terminal it was started from."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import logging
import logging.handlers
import os
import re
import signal
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from s3mount.config import default_state_dir
from s3mount.errors import LocalDiskError, S3MountError, StoreError, leaf_of

log = logging.getLogger(__name__)

LOG_BYTES_MAX = 10 << 20
LOG_FILES_KEPT = 4

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SECRET = re.compile(r"(?<=://)(?:[^\s:/@]*:(?!\d+/)\S*|[^\s/@]+)@")
LEVELS = ("debug", "info", "warning", "error")
FORMS = ("text", "json")


def without_secrets(text: str) -> str:
    """``text`` without the user and password of URLs, such as that of a proxy."""
    return _SECRET.sub("***@", text)


class _Formatter(logging.Formatter):
    """Lines, and tracebacks below them, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


class _JsonFormatter(_Formatter):
    """One line of JSON for each record, with what it is about as fields of its own, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        about: dict[str, object] = getattr(record, "about", {})
        for name, value in about.items():
            fields[name] = without_secrets(value) if isinstance(value, str) else value
        if record.exc_info:
            fields["traceback"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(fields, default=str)


def about_error(error: BaseException, key: str = "") -> dict[str, dict[str, object]]:
    """The ``extra`` of a log record about ``error``: its kind, the key, and what S3 answered."""
    about: dict[str, object] = {"error_kind": type(error).__name__, "key": key}
    if isinstance(error, StoreError):
        about["key"] = key or error.key
        about |= {"status": error.status, "code": error.code, "request_id": error.request_id}
    return {"about": about}


class _LogFile(logging.handlers.RotatingFileHandler):
    """A rotating file that stack dumps and stray output of C code follow into each new file.

    New files are for their owner alone. What is no ordinary file (/dev/stdout, a named pipe) is
    written to, but neither rotated nor changed.
    """

    def __init__(self, path: Path) -> None:
        ordinary = path.is_file() or not path.exists()
        super().__init__(
            path,
            maxBytes=LOG_BYTES_MAX if ordinary else 0,
            backupCount=LOG_FILES_KEPT,
            encoding="utf-8",
        )
        self._follow()

    def doRollover(self) -> None:
        super().doRollover()
        self._follow()

    def _open(self) -> io.TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=_open_private)

    def _follow(self) -> None:
        assert self.stream is not None
        for descriptor in (1, 2):
            os.dup2(self.stream.fileno(), descriptor)
        # Descriptor 2 follows the file; so do the dumps that are written to it.
        faulthandler.enable(2)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def to_terminal(level: str, form: str = "text") -> None:
    """Log to stderr in one of FORMS, for a process in the foreground."""
    _set_up(logging.StreamHandler(sys.stderr), level, form)
    faulthandler.enable(2)


def to_file(path: Path, level: str, form: str = "text") -> None:
    """Log to a file that is rotated at LOG_BYTES_MAX; stdout and stderr go there as well from now on.

    Raises LocalDiskError when it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = _LogFile(path)
    except OSError as error:
        raise LocalDiskError(f"the log {path} cannot be written: {error.strerror}") from None
    _set_up(handler, level, form)


def set_level(level: str) -> None:
    """Log from this level of LEVELS on, whatever was asked for before. Repeatable."""
    logging.getLogger("s3mount").setLevel(level.upper())


def dump_stacks_on_sigusr1() -> None:
    """On SIGUSR1 write every thread's Python stack to the log, even while the loop is stuck.

    The handler that is installed already runs after it; there must be one, as the signal's default
    is to end the process.
    """
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=True)


def explain(error: BaseException, log_path: Path | None) -> tuple[str, int]:
    """What a person is told of an error that ends a command: one line, and the exit status.

    Of a group it is the first error that was raised on purpose. For any other the traceback goes to
    ``log_path`` if this process logs there, else to crash.log in the state folder.
    """
    leaf = leaf_of(error)
    logs_there = log_path is not None and bool(logging.getLogger().handlers)
    if isinstance(leaf, S3MountError):
        if logs_there:
            log.error("%s", leaf.describe() if isinstance(leaf, StoreError) else leaf)
        return without_secrets(" ".join(str(leaf).split())), leaf.exit_code
    told = without_secrets(" ".join(f"internal error: {type(leaf).__name__}: {leaf}".split()))
    text = without_secrets("".join(traceback.format_exception(error)))
    if logs_there:
        log.critical("%s\n%s", told, text)
        return f"{told}; details in {log_path}", 1
    crash = write_crash(default_state_dir(), text)
    return f"{told}; details in {crash}" if crash else told, 1


def write_crash(folder: Path, text: str) -> Path | None:
    """Append a traceback to ``folder``/crash.log; its path, or ``None`` where it cannot be written."""
    path = folder / "crash.log"
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(descriptor, "a", encoding="utf-8") as file:
            file.write(f"{stamp} pid {os.getpid()}\n{text}\n")
        return path
    return None


def _set_up(handler: logging.Handler, level: str, form: str) -> None:
    handler.setFormatter(_JsonFormatter() if form == "json" else _Formatter(_FORMAT))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Below warning these tell of every request's insides, which nobody reading this log asks for.
    for name in ("botocore", "boto3", "urllib3", "pyfuse3", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
