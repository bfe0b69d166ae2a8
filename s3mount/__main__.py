"""``python -m s3mount``."""

from __future__ import annotations

import sys

from s3mount.cli import main

sys.exit(main())
