"""What must be settled before any test module is imported."""

from __future__ import annotations

import os
from pathlib import Path

# Triton reads this when it is first imported, by whomever: without a GPU its kernels run
# interpreted, and the tests of their arithmetic need that.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
