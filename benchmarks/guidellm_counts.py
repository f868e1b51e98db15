"""GuideLLM against a running gateway: does it complete, and does it count the tokens that we bill?

Runs GuideLLM, an outside load generator, as a process of its own against a gateway with the
built-in model: streamed chats, so many at a time. Then each of its requests is looked up in the
ledger by the id of the answer: prompt tokens, output tokens and cached tokens must be the same, one
by one, and nothing may be billed that it did not ask for.

GuideLLM brings 1.5 GB of packages, so it lives in an environment of its own:
python -m venv /tmp/guidellm && /tmp/guidellm/bin/pip install torch==2.13.0 guidellm==0.8.1
Run: python -m benchmarks.guidellm_counts --guidellm /tmp/guidellm/bin/guidellm
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gateway_under_test import Target, gateway_process
from benchmarks.scheduling.points import machine
from engine.core.clock import utc_now
from engine.model.builtin import builtin_path

RESULT = Path(__file__).parent / "results" / "guidellm_counts.json"
QUESTIONS = (
    "What is the capital of {}?",
    "Tell me a story about a dog in {}.",
    "Name three things to see in {}.",
    "Is {} far away?",
)
PLACES = ("France", "Japan", "Peru", "Kenya", "Norway", "India", "Chile", "Spain", "Egypt")


def write_prompts(file: Path, count: int, seed: int) -> None:
    """Write questions, some of them more than once, as GuideLLM reads them."""
    rng = random.Random(seed)
    lines = [
        json.dumps({"prompt": rng.choice(QUESTIONS).format(rng.choice(PLACES))})
        for _ in range(count)
    ]
    file.write_text("\n".join(lines) + "\n")


def run_guidellm(args: argparse.Namespace, target: Target, folder: Path) -> dict[str, Any]:
    """Return the one benchmark of its report; raises SystemExit with its words where it fails."""
    prompts, report = folder / "prompts.json", folder / "report.json"
    write_prompts(prompts, 4 * args.requests, args.seed)
    backend = {
        "kind": "openai_http",
        "target": f"http://{target.host}:{target.port}",
        "model": target.model,
        "api_key": target.keys["premium"],
        "validate_backend": "false",  # it would ask for /health
    }
    options = {
        "--backend": ",".join(f"{name}={value}" for name, value in backend.items()),
        "--profile": f"kind=concurrent,streams={args.streams}",
        "--constraint": f"kind=max_requests,count={args.requests}",
        "--tokenizer": f"kind=hf_auto,model={builtin_path()}",
        "--data": f"kind=json_file,path={prompts}",
        "--output": f"kind=json,path={report}",
    }
    command = [args.guidellm, "run", *[part for pair in options.items() for part in pair]]
    done = subprocess.run(
        [*command, "--disable-console"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode or not report.exists():
        raise SystemExit(f"GuideLLM failed ({done.returncode}):\n{done.stdout}\n{done.stderr}")
    found: dict[str, Any] = json.loads(report.read_text())["benchmarks"][0]
    return found


def billed(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the ledger's rows by the id of their answer, from the export that operators use."""
    out = folder / "usage.jsonl"
    command = [sys.executable, "-m", "gateway.cli.main", "usage", "export", "--format", "jsonl"]
    where = ["--data-dir", str(folder), "--out", str(out)]
    subprocess.run([*command, *where], check=True, capture_output=True, timeout=120)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    rows = [line for line in lines if line.get("request_id")]
    return {"-".join(row["request_id"].split("-")[:2]): row for row in rows}


def compare(report: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return totals on both sides, and how many requests are not alike."""
    completed, metrics = report["requests"]["successful"], report["metrics"]
    fields = ("prompt_tokens", "output_tokens", "cached_tokens")
    unlike = [
        one["response_id"]
        for one in completed
        if any(rows.get(one["response_id"], {}).get(field) != one[field] for field in fields)
    ]
    asked = {one["response_id"] for one in completed}
    return {
        "completed": len(completed),
        "errored": len(report["requests"]["errored"]),
        "incomplete": len(report["requests"]["incomplete"]),
        "not_alike": len(unlike),
        "billed_rows": len(rows),
        "billed_without_a_completed_request": len(rows.keys() - asked),
        "guidellm": {field: sum(one[field] for one in completed) for field in fields},
        "ledger": {
            field: sum(row[field] for id_, row in rows.items() if id_ in asked) for field in fields
        },
        "median_ttft_ms": round(metrics["time_to_first_token_ms"]["successful"]["median"], 1),
        "requests_per_s": round(metrics["requests_per_second"]["successful"]["mean"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--guidellm", required=True, help="path of its program")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    args = parser.parse_args()
    version = subprocess.run(
        [args.guidellm, "--version"], capture_output=True, text=True, check=True
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with gateway_process(folder) as target:
            report = run_guidellm(args, target, folder)
        found = compare(report, billed(folder))
    result = {
        "measured": utc_now().date().isoformat(),
        "machine": machine(),
        "version": version.stdout.split()[-1],
        "streams": args.streams,
        **found,
    }
    print(json.dumps(result, indent=2))
    if not args.dry_run:
        args.result.write_text(json.dumps(result, indent=2) + "\n")
    if found["not_alike"] or found["errored"]:
        raise SystemExit("the counts are not the same")


if __name__ == "__main__":
    main()
