"""``python -m s3mount.engine --fd N``: the engine process. Started by ``engine.process`` only."""

from __future__ import annotations

import sys

from s3mount.engine.signals import leave_signals_to_parent

# Before the imports that take their time.
leave_signals_to_parent()

from s3mount.engine.child import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
