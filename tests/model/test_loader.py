"""Whatever is wrong with a model, a flag or the machine is one clear line before serving."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_model, tiny_config

from engine.core.batch import Batch, Chunk
from engine.core.errors import ModelLoadError
from engine.core.request import SamplingParams
from engine.model import loader, memory
from engine.model.attention import TorchAttention
from engine.model.checkpoint import open_checkpoint
from engine.model.kernels.native import NativeKernels
from engine.model.kv_cache import KVShape
from engine.model.lean_model import LeanModel
from engine.model.loader import load_runner, pick_device
from engine.model.memory import GIB, plan_kv
from engine.model.step_input import StepInput

Damage = Callable[[Path], None]


def change_config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        config = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return damage


def write(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def cut(share: float) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return damage


def drop_weight(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def poison(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lost_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
FAULTS: dict[str, tuple[Damage, str]] = {
    "no config": (remove("config.json"), "holds no config.json"),
    "config is no JSON": (write("config.json", b"{bad"), "config.json cannot be used"),
    "unknown family": (change_config(model_type="nosuch"), "nosuch"),
    "no family": (change_config(model_type=None, architectures=None), "model_type"),
    "own code": (
        change_config(model_type="zzz", auto_map={"AutoConfig": "x.Y"}),
        "config.json cannot be used",
    ),
    "heads do not divide": (change_config(num_attention_heads=5), "attention heads"),
    "a size is a word": (change_config(hidden_size="abc"), "hidden_size"),
    "other sizes": (change_config(intermediate_size=99), "cannot be loaded"),
    "unknown activation": (change_config(hidden_act="nosuch"), "nosuch"),
    "not a language model": (change_config(model_type="vit"), "cannot be loaded"),
    "quantised": (
        change_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "cannot be loaded",
    ),
    "a layer too many": (change_config(num_hidden_layers=3), r"lacks \d+ of its weights"),
    "a layer too few": (change_config(num_hidden_layers=1), "has no place for"),
    "no weights": (remove("model.safetensors"), "the weights are missing"),
    "pickled weights": (only_pickles, "convert them to safetensors"),
    "lost shard": (lost_shard, r"model-2.safetensors is missing"),
    "half a file": (cut(0.5), r"model.safetensors is truncated: \d+ of \d+ bytes"),
    "half a header": (cut(0.002), "truncated: it ends within its header"),
    "three bytes": (write("model.safetensors", b"abc"), "is not a safetensors file"),
    "noise": (write("model.safetensors", b"\xff" * 999), "is not a safetensors file"),
    "damaged header": (
        write("model.safetensors", struct.pack("<Q", 9) + b"{not json"),
        "has a damaged header",
    ),
    "bytes too many": (
        write("model.safetensors", struct.pack("<Q", len(HEADER)) + HEADER + bytes(20)),
        "is damaged: ",
    ),
    "git-lfs pointer": (
        write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        "git-lfs pointer",
    ),
    "a weight is missing": (drop_weight, "model.layers.1.mlp.up_proj.weight"),
    "a weight is NaN": (poison, "NaN or infinity"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_model_is_one_line_that_names_what_is_wrong(
    fault: str, llama_folder: Path
) -> None:
    damage, expected = FAULTS[fault]
    damage(llama_folder)
    with pytest.raises(ModelLoadError) as caught:
        load_runner(str(llama_folder), "cpu")
    message = str(caught.value)
    assert re.search(expected, message), message
    assert "\n" not in message
    assert len(message) < 450


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"device": "tpu"}, "--device tpu"),
        ({"device": "meta"}, "--device meta is not supported"),
        ({"device": "cuda:99"}, r"--device cuda:99 is not there: torch sees \d+ CUDA devices"),
        ({"dtype": "int4"}, "--dtype int4 is unknown"),
        ({"runner": "fast"}, "runner fast is unknown"),
        ({"max_model_len": 0}, "--max-model-len 0"),
        ({"max_model_len": 5000}, "5000 is more than llama allows here .256."),
        ({"max_batch_tokens": 0}, "--max-batch-tokens 0"),
        ({"max_batch_requests": -4}, "--max-running -4"),
        ({"block_size": 0}, "block size 0"),
        ({"kv_cache_bytes": 1}, "cannot hold one request of 256 tokens"),
        ({"kv_cache_bytes": 20_000, "max_model_len": 256}, "cannot hold one request"),
        ({"model": "/no/such/folder"}, "/no/such/folder does not exist"),
        ({"model": "no such name"}, "does not exist"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(
    flags: dict[str, Any], expected: str, llama_folder: Path
) -> None:
    with pytest.raises(ModelLoadError, match=expected) as caught:
        load_runner(**{"model": str(llama_folder), "device": "cpu", **flags})
    assert "\n" not in str(caught.value)


def test_a_file_instead_of_a_folder(llama_folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="is a file; the model is given as its folder"):
        load_runner(str(llama_folder / "config.json"))


def test_a_hub_model_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="someone/something is no folder here and the hub"):
        load_runner("someone/something")


def test_a_hub_model_in_the_cache_needs_no_network(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--someone--something"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots").mkdir()
    llama_folder.rename(folder / "snapshots" / ("a" * 40))
    checkpoint = open_checkpoint("someone/something")
    assert checkpoint.path == folder / "snapshots" / ("a" * 40)
    assert checkpoint.num_weights > 0


def test_weights_that_do_not_fit_are_refused_before_loading(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says what is needed and what there is; nothing was read by then."""
    monkeypatch.setattr(loader, "available_bytes", lambda device: 1000)
    monkeypatch.delattr(loader, "load_hf_model")
    with pytest.raises(ModelLoadError, match=r"needs 0\.0 GiB .* has 0\.0 GiB free"):
        load_runner(str(llama_folder), "cpu")


def test_running_out_of_memory_while_loading_is_one_line(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate\n 2 GiB")

    monkeypatch.setattr(loader, "KVCache", full)
    with pytest.raises(ModelLoadError, match="does not fit: out of memory on cpu"):
        load_runner(str(llama_folder), "cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sound_model_loads_checks_itself_and_answers(dtype: str, llama_folder: Path) -> None:
    stages: list[tuple[str, float]] = []
    runner = load_runner(
        str(llama_folder),
        "cpu",
        dtype,
        max_batch_requests=4,
        runner="generic",
        progress=lambda stage, fraction: stages.append((stage, fraction)),
    )
    assert runner.info.runner == "generic"
    assert runner.info.dtype == dtype
    assert 0 <= runner.info.self_check_error < 0.1
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    capacity = runner.capacity
    # Four requests of 256 tokens use 64 blocks; more would never be filled.
    assert (capacity.num_blocks, capacity.block_size) == (64, 16)
    assert (capacity.max_model_len, capacity.max_batch_tokens) == (256, 512)
    chunk = Chunk("a", 0, (5, 6, 7), (1,), SamplingParams(max_tokens=1))
    assert len(runner.execute(Batch(0, (chunk,))).tokens) == 1


def test_shards_with_an_index_are_one_model(tmp_path: Path) -> None:
    model = random_model(tiny_config("llama"))
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.num_weights == sum(p.numel() for p in model.parameters())
    assert load_runner(str(tmp_path), "cpu").info.self_check_error < 1e-4


def test_a_family_that_cannot_be_paged_is_refused_by_the_loader(tmp_path: Path) -> None:
    random_model(tiny_config("falcon")).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="falcon computes attention in its own code"):
        load_runner(str(tmp_path), "cpu")


SHAPE = KVShape(2, 2, 16, torch.float32)  # 512 bytes a token
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAN: dict[str, Any] = {
    "block_size": 16,
    "max_model_len": 1024,
    "is_len_fixed": False,
    "max_batch_requests": 64,
    "wanted_bytes": None,
    "device": CPU,
}


def test_the_pool_takes_a_share_of_memory_and_never_more_than_can_be_used() -> None:
    useful = 64 * 64
    assert plan_kv(SHAPE, **PLAN, available=64 * GIB).num_blocks == useful
    scarce = plan_kv(SHAPE, **PLAN, available=32_000_000)
    assert scarce.num_blocks == 8_000_000 // 8192 - 1
    assert scarce.max_model_len == 1024


def test_a_scarce_pool_shortens_the_context_unless_the_operator_fixed_it() -> None:
    small = {**PLAN, "wanted_bytes": 50 * 8192}
    plan = plan_kv(SHAPE, **small, available=GIB)
    assert (plan.num_blocks, plan.max_model_len) == (49, 784)
    with pytest.raises(ModelLoadError, match="cannot hold one request of 1024 tokens"):
        plan_kv(SHAPE, **{**small, "is_len_fixed": True}, available=GIB)


def test_a_pool_larger_than_the_memory_is_refused() -> None:
    wanted = {**PLAN, "wanted_bytes": 30_000_000}
    with pytest.raises(ModelLoadError, match=r"needs 0\.03 GiB, the device has 0\.01 GiB"):
        plan_kv(SHAPE, **wanted, available=10_000_000)


def test_free_memory_is_what_the_kernel_and_the_container_both_allow(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   40 kB\n")
    assert memory._meminfo(meminfo) == 40 * 1024
    assert memory._meminfo(tmp_path / "none") is None
    assert memory._cgroup(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._cgroup(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._cgroup(tmp_path) == 450
    assert memory.available_bytes(CPU) > 0


def test_auto_is_a_device_that_exists() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device("auto").type == expected


class Careless(TorchAttention):
    """An attention that lets the padding block, which nobody ever wrote, into its sums."""

    name = "careless"

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        return super().attend(layer, q, scale, window, softcap) + 0 * self.kv_cache.data[0].sum()


def test_a_backend_that_reads_what_nobody_wrote_is_dropped_for_the_reference(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison at load runs over a pool of NaN, so such a read cannot go unseen."""
    monkeypatch.setattr(loader, "select_attention", lambda cache, *_: Careless(cache))
    assert load_runner(str(llama_folder), "cpu", runner="generic").info.attention == "torch"


def test_the_lean_runner_is_taken_where_it_can_be(
    llama_folder: Path, native: NativeKernels | None
) -> None:
    """A llama on a CPU with kernels; where there are none the generic runner serves it."""
    runner = load_runner(str(llama_folder), "cpu")
    assert runner.info.runner == ("generic" if native is None else "lean")
    assert runner.info.self_check_error < 1e-4


def test_a_lean_runner_that_is_wrong_is_not_used(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch, native: NativeKernels | None
) -> None:
    """The weights are loaded anew for the generic one, and its answers are right."""
    if native is None:
        pytest.skip("the CPU kernels cannot be compiled here")

    class Wrong(LeanModel):
        def step(self, inp: StepInput) -> torch.Tensor:
            return super().step(inp).roll(1, -1)

    monkeypatch.setattr(loader, "LeanModel", Wrong)
    runner = load_runner(str(llama_folder), "cpu")
    assert runner.info.runner == "generic"
    assert runner.info.self_check_error < 1e-4


def test_module_swaps_that_are_wrong_are_undone(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the swaps' own checks let through, the comparison of whole models still sees."""

    def spoil(module: torch.nn.Module, _native: NativeKernels | None) -> list[str]:
        with torch.no_grad():
            module.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(-1)
        return ["1 Linear"]

    monkeypatch.setattr(loader, "optimise", spoil)
    assert load_runner(str(llama_folder), "cpu", runner="generic").info.self_check_error < 1e-4


def test_asking_for_the_lean_runner_where_it_cannot_be_is_one_line(tmp_path: Path) -> None:
    random_model(tiny_config("gpt2")).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"runner lean cannot run gpt2 in torch\.float32"):
        load_runner(str(tmp_path), "cpu", runner="lean")
