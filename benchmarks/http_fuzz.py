"""Fuzzes a running gateway by its own /openapi.json, with schemathesis, and counts the cases.

    python -m benchmarks.http_fuzz
    python -m benchmarks.http_fuzz --only '^/v1/messages' --seed 7

It starts a gateway of its own on a throwaway ledger. Client routes are asked with an API key, the
operator's with the admin token. A case fails on a status of 5xx, on a status, a content type or a
body that /openapi.json does not allow, on a body that breaks the schema and is accepted, and on a
method that is not there and is not refused. Not asked for: that whatever fits the schema is
accepted (no schema can say what a model's context or a key's rights are).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from engine.core.clock import utc_now

ROOT = Path(__file__).resolve().parents[1]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method"
)
# A body of too many bytes is refused for that, whatever else is wrong with it.
SETTINGS = """
[checks.negative_data_rejection]
expected-statuses = ["4xx"]
"""
CLIENTS, OPERATORS = r"^/(v1/|livez|readyz|metrics)", r"^/admin"
START_LIMIT_S = 240
ANSWERED = re.compile(r'^tiergate_requests_total\{.*tiergate_outcome="ok".*\} (\S+)$', re.MULTILINE)
COUNT = re.compile(r"(\d[\d,]*) generated")


@contextmanager
def gateway(folder: Path) -> Iterator[dict[str, Any]]:
    """Run a gateway with the built-in model and short answers; yield what its ready file says."""
    ready = folder / "ready.json"
    command = [sys.executable, "-m", "gateway.cli.main", "serve", "--demo", "--port", "0"]
    command += ["--data-dir", str(folder / "data"), "--ready-file", str(ready)]
    command += ["--threads", "1", "--max-model-len", "160", "--log-level", "warning"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TIERGATE_")}
    kept["TIERGATE_MODEL_ALIASES"] = "*"  # or hardly a case would get beyond its model's name
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=kept, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_LIMIT_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit((folder / "log.txt").read_text())
                time.sleep(0.1)
            yield json.loads(ready.read_text())
            if process.poll() is not None:
                raise SystemExit("the gateway died: " + (folder / "log.txt").read_text()[-4000:])
        finally:
            process.terminate()
            process.wait(60)


def fuzz(url: str, token: str, only: str, examples: int, seed: int) -> tuple[int, int, str]:
    """Return the exit code, the number of cases, and what schemathesis said."""
    command = ["run", f"{url}/openapi.json", "--include-path-regex", only]
    command += ["--header", f"Authorization: Bearer {token}", "--checks", CHECKS]
    command += ["--max-examples", str(examples), "--seed", str(seed)]
    command += ["--phases", "examples,coverage,fuzzing", "--mode", "all", "--no-shrink"]
    command += ["--continue-on-failure", "--suppress-health-check", "all", "--warnings", "off"]
    program = Path(sys.executable).with_name("schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "schemathesis.toml").write_text(SETTINGS)
        done = subprocess.run(
            [program, *command], cwd=folder, capture_output=True, text=True, check=False
        )
    found = COUNT.search(done.stdout)
    cases = int(found[1].replace(",", "")) if found else 0
    return done.returncode, cases, done.stdout + done.stderr


def answered(url: str) -> int:
    """Return how many requests got an answer: a fuzzer that is only ever refused shows little."""
    told = httpx.get(f"{url}/metrics", timeout=60).text
    return sum(int(float(count)) for count in ANSWERED.findall(told))


def main() -> int:
    """Fuzz, print the counts, and return 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=60, help="most cases of an operation")
    parser.add_argument("--only", default="", help="paths to fuzz, as a regular expression")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file to write the result to, as JSON")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, gateway(Path(folder)) as ready:
        runs = ((CLIENTS, ready["keys"]["premium"]), (OPERATORS, ready["admin_token"]))
        if options.only:
            token = runs[options.only.lstrip("^").startswith("/admin")][1]
            runs = ((options.only, token),)
        for paths, token in runs:
            began = time.monotonic()
            code, cases, said = fuzz(ready["url"], token, paths, options.examples, options.seed)
            took_s = time.monotonic() - began
            print(f"{paths}: {cases} cases in {took_s:.0f} s, exit code {code}", flush=True)
            if code:
                print(said)
            results.append({"paths": paths, "cases": cases, "seconds": round(took_s), "code": code})
        answers = answered(ready["url"])
    failed = any(result["code"] for result in results)
    told = {
        "measured": utc_now().date().isoformat(),
        "schemathesis": version("schemathesis"),
        "checks": CHECKS.split(","),
        "examples": options.examples,
        "seed": options.seed,
        "runs": results,
        "cases": sum(result["cases"] for result in results),
        "answers": answers,
        "failed": failed,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
