"""Recorded traces: what is read, and the one line that says what is wrong with a file."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from sim_world import DATA, SHAREGPT

from engine.sim.trace import MOST_TURNS, TraceError, TraceRow, load_trace, merge_traces


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_every_known_column_is_read_and_others_are_ignored(tmp_path: Path) -> None:
    """Times in ms become seconds, prefix blocks numbers; a column nobody knows does no harm."""
    path = write(
        tmp_path,
        "turn,arrival_ms,output_tokens,input_tokens,tenant,prefix_block_ids\n"
        "x,0,5,7,red,\n"
        "y,1500,1,2,,3 4\n",
    )
    assert load_trace(path) == (
        TraceRow(7, 5, 0.0, "red"),
        TraceRow(2, 1, 1.5, "", (3, 4)),
    )


def test_what_a_row_may_have_at_most_is_read(tmp_path: Path) -> None:
    """Where the column is empty nothing is known; an answer that is longer is a mistake."""
    head = "input_tokens,output_tokens,max_tokens\n"
    path = write(tmp_path, f"{head}7,5,64\n2,1,\n")
    assert [row.max_tokens for row in load_trace(path)] == [64, None]
    with pytest.raises(TraceError, match="max_tokens of row 1 is less than its output_tokens"):
        load_trace(write(tmp_path, f"{head}7,5,4\n"))


def test_a_turn_knows_how_much_was_asked_in_each(tmp_path: Path) -> None:
    """What its prompt repeats of the talk is no asking; one that repeats nothing is all asking."""
    text = "conversation,input_tokens,output_tokens\na,10,5\na,22,7\n,9,1\na,40,3\nb,6,2\na,4,2\n"
    asked = [row.asked_tokens for row in load_trace(write(tmp_path, text))]
    assert asked == [(10,), (10, 7), (), (10, 7, 11), (6,), (10, 7, 11, 4)]


def test_plain_and_gzipped_files_are_the_same(tmp_path: Path) -> None:
    """The content tells, not the name."""
    text = "input_tokens,output_tokens\n1,2\n"
    packed = tmp_path / "packed.csv"
    packed.write_bytes(gzip.compress(text.encode()))
    assert load_trace(packed) == load_trace(write(tmp_path, text)) == (TraceRow(1, 2),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "column input_tokens is missing"),
        ("input_tokens\n1\n", "column output_tokens is missing"),
        ("input_tokens,output_tokens\n", "no row below the header"),
        ("input_tokens,output_tokens\n1,2\n-3,4\n", "input_tokens of row 2 must be 1 to"),
        ("input_tokens,output_tokens\n1,0\n", "output_tokens of row 1 must be 1 to"),
        ("input_tokens,output_tokens\n10000001,4\n", "input_tokens of row 1 must be 1 to"),
        ("input_tokens,output_tokens\n1,2.5\n", "output_tokens of row 1 must be a whole number"),
        ("input_tokens,output_tokens\n1\n", "output_tokens of row 1 must be a whole number"),
        ("input_tokens,output_tokens\n1,many\n", "must be a whole number, not 'many'"),
        ("input_tokens,output_tokens,arrival_s\n1,2,1\n1,2,.5\n", "arrival_s of row 2 is earlier"),
        ("input_tokens,output_tokens,arrival_s\n1,2,-1\n", "arrival_s of row 1 must be a time"),
        ("input_tokens,output_tokens,arrival_s\n1,2,nan\n", "arrival_s of row 1 must be a time"),
        ("input_tokens,output_tokens,arrival_s\n1,2,\n", "arrival_s of row 1 must be a number"),
        ("input_tokens,output_tokens,arrival_s,arrival_ms\n1,2,0,0\n", "both arrival_s and"),
        ("input_tokens,output_tokens,prefix_block_ids\n1,2,a b\n", "prefix_block_ids of row 1"),
        ("input_tokens,output_tokens,prefix_block_ids\n1,2,-1\n", "must be from 0 to"),
        ("input_tokens,output_tokens,prefix_block_ids\n1,2,4294967296\n", "must be from 0 to"),
        ('input_tokens,output_tokens\n1,"2\n', ": line "),
    ],
)
def test_a_bad_file_gets_one_line_with_field_and_row(tmp_path: Path, text: str, says: str) -> None:
    """Whoever reads the message knows where to look."""
    path = write(tmp_path, text)
    with pytest.raises(TraceError) as error:
        load_trace(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_told_too(tmp_path: Path) -> None:
    """Reading errors are trace errors as well."""
    with pytest.raises(TraceError, match="No such file"):
        load_trace(tmp_path / "none.csv")
    torn = tmp_path / "torn.gz"
    torn.write_bytes(gzip.compress(b"input_tokens,output_tokens\n" * 99)[:-20])
    with pytest.raises(TraceError):
        load_trace(torn)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(TraceError, match="not UTF-8"):
        load_trace(binary)


def test_traces_are_merged_by_time_and_named_as_tenants() -> None:
    """Neighbours keep their own order; equal times come in the order of the traces."""
    red = (TraceRow(1, 1, 0.0), TraceRow(2, 1, 5.0))
    blue = (TraceRow(3, 1, 0.0, "old"), TraceRow(4, 1, 4.0))
    merged = merge_traces({"red": red, "blue": blue})
    assert [(r.tenant, r.num_prompt_tokens) for r in merged] == [
        ("red", 1),
        ("blue", 3),
        ("blue", 4),
        ("red", 2),
    ]
    with pytest.raises(TraceError, match="trace blue: there are no arrival times"):
        merge_traces({"red": red, "blue": [TraceRow(1, 1)]})


@pytest.mark.skipif(not SHAREGPT.exists(), reason="the shared traces are not on this machine")
def test_the_public_traces_are_readable() -> None:
    """The headline trace has all its rows, and every trace with these columns loads."""
    assert len(load_trace(SHAREGPT)) == 24_880
    rows = load_trace(DATA / "traces" / "mooncake_synthetic.csv.gz")
    assert len(rows) == 2600
    assert rows[0].arrival_s == 0.0
    assert all(row.prefix_block_ids for row in rows)


def test_a_turn_knows_the_answers_before_it_and_never_its_own(tmp_path: Path) -> None:
    """Each conversation for itself, in the order of the file; rows without one have none."""
    path = write(
        tmp_path,
        "conv_est,input_tokens,output_tokens,text\n"
        'a,1,10,"Hi, you"\nb,1,20,\na,1,30,\n,1,40,\na,1,50,\n,1,60,\nb,1,70,\n',
    )
    rows = load_trace(path)
    assert [row.previous_outputs for row in rows] == [
        (), (), (10,), (), (10, 30), (), (20,),
    ]  # fmt: skip
    assert [row.conversation for row in rows] == ["a", "b", "a", "", "a", "", "b"]
    assert rows[0].text == "Hi, you"


def test_a_conversation_belongs_to_one_tenant_and_is_remembered_for_so_long(
    tmp_path: Path,
) -> None:
    """Two tenants may use the same name; what lies MOST_TURNS answers back is forgotten."""
    lines = [f"x,{'red' if i % 2 else 'blue'},1,{i + 1}" for i in range(2 * MOST_TURNS + 6)]
    path = write(tmp_path, "dialogue,tenant,input_tokens,output_tokens\n" + "\n".join(lines))
    rows = load_trace(path)
    assert rows[-1].previous_outputs == tuple(range(6, 2 * MOST_TURNS + 5, 2))
    assert len(rows[-1].previous_outputs) == MOST_TURNS
    merged = merge_traces({"east": [TraceRow(1, 1, 0.0, conversation="7")]})
    assert merged[0].conversation == "east/7"
