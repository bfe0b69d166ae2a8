"""The note in the state folder on a trial of the store that runs, so that one which was killed is tidied up."""

from __future__ import annotations

import logging
from pathlib import Path

from s3mount.names import is_trial_key
from s3mount.refs import Key

log = logging.getLogger(__name__)

FILE = "probe"


class RunningTrial:
    """While it is entered, the state folder tells below which key the store is tried.

    ``key``: the one to use, which is that of an earlier trial that did not end; then ``killed`` is the same.
    """

    def __init__(self, state_dir: Path, key: Key) -> None:
        self._path = state_dir / FILE
        self.key = key
        self.killed: Key = ""

    def __enter__(self) -> RunningTrial:
        try:
            noted = self._path.read_text() if self._path.exists() else ""
            if is_trial_key(noted):
                self.key = self.killed = noted
            else:
                self._path.write_text(self.key)
        except OSError as error:
            log.info("the trial of the store is not noted: %s", error)
        return self

    def __exit__(self, kind: type[BaseException] | None, *about: object) -> None:
        if kind is None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                log.info("the note on the trial of the store stays: %s", error)
