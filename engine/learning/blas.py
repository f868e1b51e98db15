"""Keeps numpy's products of matrices on the thread that asks for them; it knows no model.

A guess multiplies a few hundred thousand numbers, a tenth of a millisecond. OpenBLAS would share
that out over all cores, and its threads then wait in a loop for the next product: at 60 guesses a
second they took more than a quarter of a core, and the event loop's own time grew by half.
"""

from __future__ import annotations

from threadpoolctl import ThreadpoolController


def use_one_thread() -> None:
    """Let OpenBLAS, as numpy brings it, use one thread in this process; harmless when repeated."""
    ThreadpoolController().select(internal_api="openblas").limit(limits=1)
