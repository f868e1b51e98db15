"""A fit on its way in a process of its own: started, asked, ended; it knows rows and no scope."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine.learning.length_model import LengthModel
from engine.learning.rows import Row, StateError, pack_rows

ROOT = Path(__file__).resolve().parents[2]  # where `engine` is found, installed or not
# Nothing else of this process's environment is the fit's business; threads of BLAS would take the
# cores that serve.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}
MOST_SECONDS = 300.0
END_WAIT_S = 5.0


class FitFailed(Exception):
    """The fit's process did not give a model; one sentence says why."""


class FitProcess:
    """One fit. `poll` until it returns a model; `close` ends it whenever one is tired of it.

    Raises OSError where no process can be made.
    """

    def __init__(self, rows: Sequence[Row], now_ns: int) -> None:
        self._began_ns = now_ns
        self._files = contextlib.ExitStack()
        try:
            # Files and not pipes: nothing blocks, and no one has to read along.
            rows_file, self._model, self._errors = (
                self._files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
                for _ in range(3)
            )
            rows_file.write(pack_rows(rows))
            rows_file.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engine.learning.fit_worker"],
                stdin=rows_file,
                stdout=self._model,
                stderr=self._errors,
                cwd=ROOT,
                env=ENVIRONMENT,
                process_group=0,  # the terminal's Ctrl-C is for the gateway, which ends this
            )
        except OSError:
            self._files.close()
            raise

    def poll(self, now_ns: int) -> LengthModel | None:
        """Return the model, None while it is not ready; raises FitFailed, and is closed then."""
        status = self._process.poll()
        if status is None:
            if (now_ns - self._began_ns) / 1e9 <= MOST_SECONDS:
                return None
            self.close()
            raise FitFailed(f"the fit took longer than {MOST_SECONDS:.0f} s")
        try:
            if status != 0:
                self._errors.seek(0)
                lines = self._errors.read()[-2000:].decode("utf-8", "replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "")
                raise FitFailed(f"the fit's process ended with status {status}: {last[:200]}")
            self._model.seek(0)
            return LengthModel.from_bytes(self._model.read())
        except StateError as error:
            raise FitFailed(f"the fit gave no model: {error}") from error
        finally:
            self._files.close()

    def close(self) -> None:
        """End the process, if it still runs, and leave nothing behind."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(END_WAIT_S)
        self._files.close()
