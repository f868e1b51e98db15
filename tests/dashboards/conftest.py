"""Where the kit of the gateway's tests is: the boards are tried on a whole gateway."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "gateway"))
