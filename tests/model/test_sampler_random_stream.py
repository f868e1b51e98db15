"""The random stream is SplitMix64 as published, and each seed's stream stands for itself."""

from __future__ import annotations

import numpy as np
import sampler_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model.random_stream import splitmix64, uniforms

_GAMMA = 0x9E3779B97F4A7C15


def test_the_finaliser_gives_the_published_numbers() -> None:
    """SplitMix64 from state 1234567, the vector many implementations test against."""
    states = np.array([1234567 + (i + 1) * _GAMMA & (1 << 64) - 1 for i in range(5)], np.uint64)
    assert splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 2**40)), min_size=1, max_size=20
    )
)
def test_the_vector_form_equals_plain_integers(pairs: list[tuple[int, int]]) -> None:
    """No wrap-around, sign or width of a seed makes numpy differ from exact arithmetic."""
    seeds, counters = zip(*pairs, strict=True)
    values = uniforms(seeds, counters).tolist()
    assert values == [reference.uniform(s, c) for s, c in pairs]
    assert all(0.0 <= value < 1.0 for value in values)


def test_streams_are_even_and_unrelated() -> None:
    """Neighbouring seeds and counters, and seeds one step of the generator apart, are independent.

    Means and correlations of 2**16 uniforms lie within five standard errors of 1/2 and 0.
    """
    size = 1 << 16
    counters = range(size)
    one = uniforms([7] * size, counters)
    streams = {
        "next counter": np.roll(one, 1),
        "next seed": uniforms([8] * size, counters),
        "shifted seed": uniforms([7 + _GAMMA] * size, counters),
        "shifted seed and counter": np.roll(uniforms([7 + _GAMMA] * size, counters), 1),
        "seed as counter": uniforms(range(size), [7] * size),
    }
    bound = 5 / size**0.5
    assert abs(one.mean() - 0.5) < bound * 12**-0.5
    for name, other in streams.items():
        assert abs(other.mean() - 0.5) < bound * 12**-0.5, name
        assert abs(np.corrcoef(one, other)[0, 1]) < bound, name
