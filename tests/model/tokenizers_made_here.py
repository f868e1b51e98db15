"""Small tokenizers shaped like real ones, trained on the spot, in folders as models ship them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)
from tokenizers import pre_tokenizers as pre

TEXTS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))",
    "Größe, naïve café, señor; Привет, мир! 你好,世界。こんにちは",
    "It's the gateway's job: don't keep tenants waiting...  Two  spaces.",
    "hello hello world world the the and and ing ing tion tion",
]
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"

LLAMA3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                  "<|end_header_id|>", "<|eot_id|>"]  # fmt: skip
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# Own templates in the manner of each family; each uses what its family's template needs of Jinja.
LLAMA3_TEMPLATE = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set opening = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set opening = '' %}
    {%- set rest = messages %}
{%- endif %}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now('%d %b %Y') %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' ~ date_string ~ '\\n' }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) ~ '\\n' }}
    {%- endfor %}
{%- endif %}
{{- opening ~ '<|eot_id|>' }}
{%- for message in rest %}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- call.function.name ~ call.function.arguments | tojson }}
        {%- endfor %}
    {%- else %}
        {{- message.content | trim }}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN_TEMPLATE = """{%- set seen = namespace(system=false) %}
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {%- if message.role == 'system' %}{% set seen.system = true %}{% endif %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}
    {%- else %}{{ message.content }}{% endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
{{ '<think>\\n</think>\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL_TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate, the user first') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""
GEMMA_TEMPLATE = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


def texts() -> Iterator[str]:
    for _ in range(20):
        yield from TEXTS


def byte_level(special: list[str], bos: str | None = None) -> Tokenizer:
    """GPT-2, Llama 3 and Qwen: byte-level BPE; `bos` is put in front by the post-processor."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(SPLIT), behavior="isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=600, show_progress=False, special_tokens=special,
        initial_alphabet=pre.ByteLevel.alphabet(),
    ))  # fmt: skip
    made.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("two words")])
    if bos:
        made.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(
                    single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
                ),
            ]
        )
    else:
        made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


def byte_fallback(special: list[str], *, strip: bool = True) -> Tokenizer:
    """Llama 2 (strips a leading space) and Gemma (does not): "▁" for spaces, <0x..> for bytes."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    latin = (text.replace(" ", "▁") for text in texts())
    learner.train_from_iterator(
        ("".join(c for c in text if c < "Ā" or c == "▁") for text in latin),
        trainers.BpeTrainer(vocab_size=320, show_progress=False),
    )
    learned = json.loads(learner.to_str())["model"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted(learned["vocab"], key=learned["vocab"].get)
    made = Tokenizer(models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token=special[0], fuse_unk=True, byte_fallback=True,
    ))  # fmt: skip
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        made.normalizer = normalizers.Replace(" ", "▁")
        made.decoder = decoders.Sequence(steps)
    made.add_special_tokens(special)
    return made


def metaspace_unigram() -> Tokenizer:
    """T5-like: Unigram with a Metaspace decoder, which treats the first token apart."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(texts(), trainers.UnigramTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<unk>", "</s>"], unk_token="<unk>",
    ))  # fmt: skip
    return made


def word_piece() -> Tokenizer:
    """BERT-like: WordPiece with ## continuations; its decoder inserts the spaces."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    made.pre_tokenizer = pre.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(texts(), trainers.WordPieceTrainer(
        vocab_size=300, show_progress=False, special_tokens=["[UNK]", "[CLS]", "[SEP]"],
    ))  # fmt: skip
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return made


def write_folder(
    folder: Path, made: Tokenizer, settings: Mapping[str, Any], /, **files: Any
) -> Path:
    """Write a model's folder; `files` become JSON files, or text for `chat_template_jinja`."""
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    whole = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(whole))
    for name, content in files.items():
        if name == "chat_template_jinja":
            (folder / "chat_template.jinja").write_text(content)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_families(root: Path) -> dict[str, Path]:
    """Write one folder per family; returns them by name."""
    llama2 = byte_fallback(["<unk>", "<s>", "</s>"])
    llama2.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", llama2.token_to_id("<s>"))]
    )
    gemma = byte_fallback(
        ["<unk>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], strip=False
    )
    gemma.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", gemma.token_to_id("<bos>"))]
    )
    return {
        "llama3": write_folder(
            root / "llama3",
            byte_level(LLAMA3_SPECIAL, bos="<|begin_of_text|>"),
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
            generation_config={"eos_token_id": [1, 4]},
            chat_template_jinja=LLAMA3_TEMPLATE,
        ),
        "qwen": write_folder(
            root / "qwen",
            byte_level(QWEN_SPECIAL),
            {
                "bos_token": None,
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "add_bos_token": False,
                "chat_template": QWEN_TEMPLATE,
            },
            generation_config={"eos_token_id": [2, 0]},
        ),
        "mistral": write_folder(
            root / "mistral",
            llama2,
            {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "chat_template": [{"name": "default", "template": MISTRAL_TEMPLATE}],
            },
            config={"eos_token_id": 2},
        ),
        "gemma": write_folder(
            root / "gemma",
            gemma,
            {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": GEMMA_TEMPLATE},
            generation_config={"eos_token_id": [2, 4]},
        ),
        "unigram": write_folder(root / "unigram", metaspace_unigram(), {"eos_token": "</s>"}),
        "word_piece": write_folder(
            root / "word_piece",
            word_piece(),
            {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        ),
    }
