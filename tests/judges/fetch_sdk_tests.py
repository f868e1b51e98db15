"""Brings the tests of the installed OpenAI SDK, from its source distribution of the same version.

They go to the environment that the SDK itself is in. Run by `make test`; needs pip and an index.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

SDK = Path(sys.prefix) / "share" / "tiergate-judges" / "openai"


def main() -> int:
    wanted = version("openai")
    mark = SDK / "VERSION"
    if mark.exists() and mark.read_text() == wanted:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--no-binary", "openai", "--dest", folder]
        done = subprocess.run([*command, f"openai=={wanted}"], check=False)
        found = sorted(Path(folder).glob("openai-*.tar.gz"))
        if done.returncode or not found:
            print("not brought: the OpenAI SDK's own tests (no index?)", file=sys.stderr)
            return 0  # the judge says so, and fails in CI
        with tarfile.open(found[0]) as archive:
            archive.extractall(folder, filter="data")
        shutil.rmtree(SDK, ignore_errors=True)
        SDK.mkdir(parents=True)
        shutil.move(Path(folder) / f"openai-{wanted}" / "tests", SDK / "tests")
    (SDK / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = session\n"
        "filterwarnings = error\n"
    )
    mark.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
