"""Ids of rows: the form of UUID version 7, in the order of their making."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from uuid import RFC_4122, UUID

from hypothesis import given
from hypothesis import strategies as st

from tenants.ids import new_id

MOMENTS = st.datetimes(
    min_value=datetime(2000, 1, 1), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)
)


@given(MOMENTS)
def test_an_id_is_a_uuid_version_7_of_its_moment(moment: datetime) -> None:
    value = UUID(new_id(moment))
    assert value.version == 7
    assert value.variant == RFC_4122
    made = datetime.fromtimestamp((value.int >> 80) / 1000, UTC)
    assert timedelta(0) <= moment - made < timedelta(milliseconds=2)


@given(MOMENTS, st.integers(1, 10_000), st.integers())
def test_a_later_id_sorts_later(moment: datetime, millis: int, seed: int) -> None:
    bits = Random(seed).getrandbits
    later = new_id(moment + timedelta(milliseconds=millis), bits)
    assert new_id(moment, bits) < later


def test_ids_of_one_moment_differ(now: datetime) -> None:
    assert len({new_id(now) for _ in range(1000)}) == 1000
