"""Puts the project on the path last, so that our `nodes/` hides nobody else's `nodes`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
