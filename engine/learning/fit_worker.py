"""The process in which a model is fitted: rows in on standard input, a model out, and it ends.

`python -m engine.learning.fit_worker`, started by fit_process.py. It knows no tenant and no
gateway. A fit holds Python's lock for tens of milliseconds at a time; in a thread of the gateway
that would hold up every stream.
"""

from __future__ import annotations

import os
import sys

NICENESS = 10
EXIT_BAD_ROWS = 3


def main() -> int:
    """Fit once; return the exit status."""
    # Before anything heavy is imported: that is work, too.
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    from engine.learning.length_model import LengthModel
    from engine.learning.rows import StateError, unpack_rows

    try:
        model = LengthModel.fit(unpack_rows(sys.stdin.buffer.read()))
    except (StateError, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_ROWS
    sys.stdout.buffer.write(model.to_bytes())
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
