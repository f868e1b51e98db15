"""The light tokenizer gives what transformers gives, for every family's shape of tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers_made_here as made
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.core.errors import ModelLoadError
from engine.model.chat_template import ChatTemplateError
from engine.model.tokenizer import Tokenizer

FAMILIES = ["llama3", "qwen", "mistral", "gemma", "unigram", "word_piece"]
Pair = tuple[Tokenizer, PreTrainedTokenizerFast]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return made.write_families(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, Pair]:
    return {
        name: (Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder))
        for name, folder in folders.items()
    }


SPELLED_OUT = st.sampled_from(
    ["<s>", "<|eot_id|>", "<|im_end|>", "<end_of_turn>", "[SEP]", "</s>", "two words", " ", "\n\n"]
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.one_of(st.text(max_size=12), SPELLED_OUT), max_size=6))
def test_texts_become_the_tokens_transformers_makes(
    pairs: dict[str, Pair], family: str, parts: list[str]
) -> None:
    """Any Unicode text, special tokens spelled out in it included, there and back."""
    ours, theirs = pairs[family]
    text = "".join(parts)
    for special in (True, False):
        ids = ours.encode(text, special)
        assert ids == tuple(theirs.encode(text, add_special_tokens=special))
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_tokens_become_the_text_transformers_makes(
    pairs: dict[str, Pair], family: str, data: st.DataObject
) -> None:
    """A model may emit any sequence of ids, ill-formed bytes and padding ids included."""
    ours, theirs = pairs[family]
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size + 5), max_size=12))
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_special_tokens_and_ends_are_read_from_all_files(pairs: dict[str, Pair]) -> None:
    """The opening token, the tokenizer's end and the generation file's further ends."""
    expected = {
        "llama3": (0, 4, (1, 4)),
        "qwen": (None, 2, (0, 2)),
        "mistral": (1, 2, (2,)),
        "gemma": (1, 2, (2, 4)),
        "unigram": (None, 1, (1,)),
        "word_piece": (None, None, ()),
    }
    for name, (ours, theirs) in pairs.items():
        assert (ours.bos_token_id, ours.eos_token_id, ours.stop_token_ids) == expected[name]
        assert ours.vocab_size == len(theirs)
        assert ours.special_ids == set(theirs.all_special_ids) | {
            i for i, token in theirs.added_tokens_decoder.items() if token.special
        }


def test_special_tokens_named_only_in_the_configuration_count(tmp_path: Path) -> None:
    """A token missing in tokenizer.json is added, as transformers does; old files are read too."""
    folder = made.write_folder(
        tmp_path, made.word_piece(), {}, special_tokens_map={"eos_token": {"content": "<end>"}}
    )
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.eos_token_id == theirs.eos_token_id == ours.vocab_size - 1
    ids = ours.encode("The fox<end>", add_special=False)
    assert ids == tuple(theirs.encode("The fox<end>", add_special_tokens=False))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "The fox"


@pytest.mark.parametrize("family", ["llama3", "qwen", "mistral", "gemma"])
@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=20))
def test_the_tokens_bytes_joined_are_the_text(
    pairs: dict[str, Pair], family: str, text: str
) -> None:
    """So a client can rebuild an answer from its logprobs, split characters included."""
    ours, _ = pairs[family]
    ids = ours.encode("x" + text, add_special=False)
    raw = bytes(byte for token_id in ids for byte in ours.token_text(token_id).bytes)
    expected = ours.decode(ids, skip_special_tokens=False)
    assert raw.decode().removeprefix(" ") == expected.removeprefix(" ")


def test_token_texts_of_each_family(pairs: dict[str, Pair]) -> None:
    """A word keeps its space, a part of a character shows as U+FFFD but with its exact byte."""

    def shown(family: str, token: str) -> tuple[str, bytes]:
        ours, theirs = pairs[family]
        text = ours.token_text(theirs.convert_tokens_to_ids(token))
        return text.text, bytes(text.bytes)

    assert shown("llama3", "Ġthe") == (" the", b" the")
    assert shown("llama3", "ð") == ("\ufffd", b"\xf0")
    assert shown("llama3", "<|eot_id|>") == ("<|eot_id|>", b"<|eot_id|>")
    assert shown("mistral", "<0xF0>") == ("\ufffd", b"\xf0")
    assert shown("mistral", "<0x0A>") == ("\n", b"\n")
    assert shown("mistral", "▁the") == (" the", b" the")
    ours, _ = pairs["qwen"]
    assert ours.token_text(ours.vocab_size + 1).text == ""


def test_a_limit_in_the_file_does_not_cut_prompts(tmp_path: Path) -> None:
    """tokenizer.json may hold a truncation and a padding meant for training."""
    limited = made.word_piece()
    limited.enable_truncation(4)
    limited.enable_padding(length=16)
    ours = Tokenizer.load(made.write_folder(tmp_path, limited, {}))
    assert len(ours.encode("the the the the the the the the", add_special=False)) == 8


def test_a_folder_without_tokenizer_json_is_converted(tmp_path: Path) -> None:
    """Old GPT-2 folders hold vocab.json and merges.txt only; transformers converts them."""
    model = json.loads(made.byte_level(["<|endoftext|>"]).to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(merge) for merge in model["merges"])
    )
    settings_ = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_))
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in made.TEXTS:
        ids = ours.encode(text)
        assert ids == tuple(theirs.encode(text))
        assert ours.decode(ids) == text
    assert ours.stop_token_ids == (0,)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no tokenizer that can be loaded"),
        ({"tokenizer.json": "{"}, "not valid JSON"),
        ({"tokenizer.json": "[]"}, "not a JSON object"),
        ({"tokenizer.json": "{}"}, "holds no tokenizer"),
        ({"tokenizer_config.json": "\udcff"}, "cannot be read"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(
    tmp_path: Path, files: dict[str, str], says: str
) -> None:
    """The operator reads which file is wrong, not a traceback of a library."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelLoadError, match=says) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A mistyped path is no tokenizer to look for elsewhere."""
    with pytest.raises(ModelLoadError, match="not a folder"):
        Tokenizer.load(tmp_path / "nowhere")


def test_a_model_without_a_template_cannot_chat(pairs: dict[str, Pair]) -> None:
    """The error says what the client can do instead."""
    ours, _ = pairs["unigram"]
    assert not ours.has_chat_template
    with pytest.raises(ChatTemplateError, match="completions"):
        ours.encode_chat([{"role": "user", "content": "hi"}])


def test_the_gateways_process_loads_neither_torch_nor_transformers(
    folders: dict[str, Path],
) -> None:
    """Loading, encoding, chat, decoding and stop strings work on the light imports alone."""
    program = """
import sys
from engine.model.stop_strings import OutputText
from engine.model.tokenizer import Tokenizer
tokenizer = Tokenizer.load(sys.argv[1])
ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}])
assert OutputText(tokenizer, ["xyz"]).push(ids).num_tokens == len(ids)
heavy = {"torch", "transformers", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(folders["qwen"])],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
