"""Policies are named in one line, with what is not as usual, or refused with a sentence."""

from __future__ import annotations

import pytest

from engine.sim.choices import ChoiceError, PolicyChoice, parse_choice, parse_choices


def test_a_list_splits_outside_of_brackets_only() -> None:
    found = parse_choices("fcfs, slai[dynamic=0;theta=5],slai[a=1,b=2]")
    assert [choice.label for choice in found] == [
        "fcfs",
        "slai[dynamic=0;theta=5]",
        "slai[a=1;b=2]",
    ]
    assert found[1] == PolicyChoice(
        "slai[dynamic=0;theta=5]", "slai", (("dynamic", 0.0), ("theta", 5.0))
    )


def test_what_is_the_simulations_is_told_from_a_policys_options() -> None:
    """And words for on and off are numbers."""
    found = parse_choice("alise[predictor=noisy:0.2; swap=off; host_tokens=0; kv_tokens=32000]")
    assert found.options == (("swap", 0.0),)
    assert found.predictor == "noisy:0.2"
    assert (found.num_host_kv_tokens, found.num_kv_tokens) == (0, 32000)


def test_labels_become_file_names() -> None:
    assert parse_choice("hybrid[park=0;x=1.5]").slug == "hybrid-park=0-x=1.5"
    assert parse_choice("alise[predictor=histogram:/a/b.csv]").slug.count("/") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one"),
        (",", "at least one"),
        ("a,a", "twice"),
        ("a[x=1;x=2]", "option x is there twice"),
        ("a[x=1],a[x=1.0],a[x=1]", "twice"),
        ("a[x]", "must be key=value"),
        ("a[x=]", "must be key=value"),
        ("a[x=many]", "option x: must be a number"),
        ("a[kv_tokens=-5]", "whole number of tokens"),
        ("a[x=1", "must be NAME"),
        ("a b", "must be NAME"),
        ("../etc", "must be NAME"),
        ("a[" + "x" * 300 + "=1]", "must be NAME"),
    ],
)
def test_what_names_no_policy_is_refused(text: str, said: str) -> None:
    with pytest.raises(ChoiceError, match=said):
        parse_choices(text)
