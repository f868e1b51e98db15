"""Writes the Grafana boards into `boards/`: `python -m dashboards.grafana.make_boards`.

The tests run every query against a Prometheus that scraped a gateway with traffic.
"""

from __future__ import annotations

import json
from pathlib import Path

from dashboards.grafana.admission_board import ADMISSION_BOARD
from dashboards.grafana.board_shapes import board_json
from dashboards.grafana.engine_board import ENGINE_BOARD
from dashboards.grafana.promise_board import OVERVIEW
from dashboards.grafana.tenant_board import TENANT_BOARD

BOARDS = Path(__file__).parent / "boards"
ALL = (OVERVIEW, TENANT_BOARD, ENGINE_BOARD, ADMISSION_BOARD)


def texts() -> dict[str, str]:
    """Return every file of a board by its name."""
    return {f"{board.uid}.json": json.dumps(board_json(board), indent=2) + "\n" for board in ALL}


if __name__ == "__main__":
    for name, text in texts().items():
        (BOARDS / name).write_text(text)
        print(BOARDS / name)
