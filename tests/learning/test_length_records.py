"""Files of prompts and lengths: every documented shape is read, every wrong one refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from engine.learning.records import RecordError, load_records

HUGE = b"9" * 400  # an integer that is no float
DATA = Path(__file__).parents[3] / "shared" / "data"


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_general_format_is_read_from_lines_and_from_csv(tmp_path: Path) -> None:
    row = {"prompt": "Why, then?", "output_tokens": 12, "tenant": "acme", "max_tokens": 64}
    by_lines = load_records(lines(tmp_path / "a.jsonl", row, row)).records
    table = tmp_path / "a.csv.gz"
    head, body = ",".join(row), '"Why, then?",12,acme,64\n'
    table.write_bytes(gzip.compress(f"{head}\n{body}{body}".encode()))
    by_table = load_records(table).records
    assert by_lines == by_table
    question = by_lines[0].question
    assert (question.text, question.tenant, question.max_tokens) == ("Why, then?", "acme", 64)
    assert by_lines[0].length == 12


def test_a_limit_that_is_not_said_tells_nothing_of_the_length(tmp_path: Path) -> None:
    """However long the longest answer: else the limit of a long one would be its length."""
    said = [{"prompt": "a", "output_tokens": n} for n in (7, 30_000, 200_000)]
    found = load_records(lines(tmp_path / "a.jsonl", *said)).records
    assert {record.question.max_tokens for record in found} == {200_001}
    found = load_records(lines(tmp_path / "b.jsonl", *said[:1] * 2)).records
    assert {record.question.max_tokens for record in found} == {16_384}


def test_an_answer_is_no_longer_than_its_limit(tmp_path: Path) -> None:
    row = {"prompt": "a", "output_tokens": 65, "max_tokens": 64}
    path = lines(tmp_path / "a.jsonl", {**row, "output_tokens": 64}, row)
    with pytest.raises(RecordError, match="answer of row 2 has 65 tokens, more than its max_tok"):
        load_records(path)


def test_turns_know_the_answers_before_them_and_nothing_of_others(tmp_path: Path) -> None:
    path = tmp_path / "turns.csv"
    path.write_text(
        "conversation,turn,input_tokens,output_tokens\na,0,10,50\nb,0,7,5\na,1,75,30\na,2,110,20\n"
    )
    found = load_records(path).records
    assert [r.question.previous_outputs for r in found] == [(), (), (50,), (50, 30)]
    assert [r.question.asked_tokens for r in found] == [(10,), (7,), (10, 15), (10, 15, 5)]
    assert [r.turn for r in found] == [0, 0, 1, 2]
    assert found[0].group == found[2].group != found[1].group


def test_lengths_of_several_models_are_told_apart(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "m.jsonl",
        {"prompt": "One", "out_tok": {"small": 10, "large": 90}},
        {"prompt": "Two", "out_tok": {"small": 20}},
        {"prompt": "Three", "out_tok": {"small": 5, "large": 70}},
    )
    usual = load_records(path)
    assert (usual.column, [r.length for r in usual.records]) == ("small", [10, 20, 5])
    assert [r.length for r in load_records(path, "large").records] == [90, 70]
    with pytest.raises(RecordError, match="no column or model 'huge'"):
        load_records(path, "huge")


def test_the_model_with_most_lengths_is_one_that_has_them(tmp_path: Path) -> None:
    """A key whose value is missing counts for nothing."""
    rows = [{"prompt": str(n), "out_tok": {"m": 12 + n, "n": None, "o": ""}} for n in range(3)]
    found = load_records(lines(tmp_path / "n.jsonl", *rows))
    assert (found.column, [r.length for r in found.records]) == ("m", [12, 13, 14])


def test_signs_that_end_lines_elsewhere_do_not_end_a_row(tmp_path: Path) -> None:
    """JSON may have U+2028 and U+0085 in a string as they are."""
    path = tmp_path / "u.jsonl"
    rows = [{"prompt": f"one\u2028two\u0085three {n}", "output_tokens": 5} for n in range(2)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), "utf-8")
    assert [r.question.text for r in load_records(path).records] == [r["prompt"] for r in rows]


def test_texts_of_a_second_file_are_joined_by_id(tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.csv"
    lengths.write_text("id,in_tok,gpt\nx,3,40\ny,4,50\nz,4,60\n")
    texts = lines(
        tmp_path / "texts.jsonl", {"id": "y", "prompt": "Why"}, {"id": "x", "prompt": "Ex"}
    )
    found = load_records(lengths, "gpt", texts).records
    assert [(r.question.text, r.length) for r in found] == [("Ex", 40), ("Why", 50)]


def test_instruction_and_input_are_one_prompt(tmp_path: Path) -> None:
    rows = [{"instruction": "Sort.", "input": f"b a {i}", "out_tok": 3} for i in range(2)]
    found = load_records(lines(tmp_path / "i.jsonl", *rows)).records
    assert found[0].question.text == "Sort.\nb a 0"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "there is no row"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"\x1f\x8bjunk", "damaged gzip|no row|Not a gzipped"),
        (b'{"prompt": "a", "output_tokens": 3}\n{broken\n', "line 2 is no JSON"),
        (b'{"prompt": "a"}\n{"prompt": "b"}\n', "no column tells how long"),
        (b"prompt,output_tokens\na,-3\nb,4\n", "row 1 must be a whole number"),
        (b"prompt,output_tokens\na,3.5\nb,4\n", "row 1 must be a whole number"),
        (b"prompt,output_tokens\na,99999999999\nb,4\n", "row 1 must be a whole number"),
        (b"output_tokens\n3\n4\n", "row 1 has no prompt"),
        (b"prompt,output_tokens,hour\na,3,25\nb,4,1\n", "hour of row 1"),
        (b"prompt,output_tokens\na,3\n", "there are not two rows"),
        (b'{"prompt": "a", "output_tokens": true}\n{"prompt": "b"}\n', "row 1 must be"),
        (b'{"prompt": "a", "output_tokens": %s}\n' % HUGE, "row 1 must be a whole number"),
        (b'{"prompt_tokens": %s, "output_tokens": 1}\n' % HUGE, "prompt of row 1 must be a whole"),
        (b'{"prompt": "a", "output_tokens": 1, "hour": %s}\n' % HUGE, "hour of row 1"),
        (b'{"prompt": "a", "out_tok": {"m": %s}}\n' % HUGE, "row 1 must be a whole number"),
        (b'[{"prompt": "a", "output_tokens": 3}]', "one JSON array"),
        (
            b'{"prompt": "a", "out_tok": 3}\n{"prompt": "b", "out_tok": {"m": 4}}\n',
            "length of row 1 is not of a model",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "wrong"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=said) as refused:
        load_records(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="No such file"):
        load_records(tmp_path / "none")


@pytest.mark.skipif(not DATA.is_dir(), reason="the public workload data are not here")
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("prompts/alpaca5k_davinci003.jsonl.gz", 3982),
        ("prompts/arena_prompts.jsonl.gz", 628),
        ("traces/hh_multiturn_lengths.csv.gz", 4627),
        ("traces/sharegpt8k_llama2_lengths.csv.gz", 24880),
    ],
)
def test_the_public_files_are_read_whole(name: str, rows: int) -> None:
    found = load_records(DATA / name).records
    assert len(found) == rows
    turns = [record for record in found if record.turn]
    assert bool(turns) == name.startswith("traces")
    assert all(record.question.previous_outputs for record in turns)
