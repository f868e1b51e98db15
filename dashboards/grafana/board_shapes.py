"""What boards are made of: panels in rows, and their form as Grafana stores it.

A board is a list of panels, a panel is a few queries; where it stands follows from its place in
the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SOURCE = {"type": "prometheus", "uid": "tiergate-prometheus"}
COLUMNS = 24


@dataclass(frozen=True, slots=True)
class Query:
    """One expression, and what its series are called."""

    expr: str
    legend: str = ""
    instant: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. `kind` is Grafana's name of it; `steps` colour values from their bound on."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    text: str = ""
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    least: float | None = 0
    most: float | None = None
    steps: tuple[tuple[float | None, str], ...] = ((None, "blue"),)
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """A heading over the panels that follow."""

    title: str


@dataclass(frozen=True, slots=True)
class Board:
    """A page; `variables` are (name, label, query of its values)."""

    uid: str
    title: str
    text: str
    parts: tuple[Row | Panel, ...]
    variables: tuple[tuple[str, str, str], ...] = ()


def board_json(board: Board) -> dict[str, Any]:
    """Return a board as Grafana stores it."""
    panels: list[dict[str, Any]] = []
    x = y = tallest = 0
    for part in board.parts:
        if isinstance(part, Row) or x + part.width > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        number = len(panels) + 1
        if isinstance(part, Row):
            place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
            panels.append(
                {
                    "id": number,
                    "type": "row",
                    "title": part.title,
                    "collapsed": False,
                    "gridPos": place,
                    "panels": [],
                }
            )
            y += 1
            continue
        place = {"x": x, "y": y, "w": part.width, "h": part.height}
        panels.append(panel_json(part, number, place))
        x, tallest = x + part.width, max(tallest, part.height)
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.text,
        "tags": ["tiergate"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "links": [{"type": "dashboards", "tags": ["tiergate"], "title": "Tiergate",
                   "asDropdown": True, "keepTime": True, "includeVars": True}],
        "templating": {"list": [variable_json(*variable) for variable in board.variables]},
        "annotations": {"list": []},
        "panels": panels,
    }  # fmt: skip


def variable_json(name: str, label: str, query: str) -> dict[str, Any]:
    """Return a choice at the top of a board; all values are chosen at first."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": "All", "value": "$__all"},
    }


def panel_json(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    """Return a panel as Grafana stores it."""
    steps = [{"value": bound, "color": color} for bound, color in panel.steps]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    bounds = {"min": panel.least, "max": panel.most}
    defaults |= {name: bound for name, bound in bounds.items() if bound is not None}
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        fill = 30 if panel.stacked else 0
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": fill, "stacking": stacking}
        options["tooltip"] = {"mode": "multi", "sort": "desc"}
        options["legend"] = {"displayMode": "list", "placement": "bottom"}
    elif panel.kind in ("stat", "gauge", "bargauge"):
        options["reduceOptions"] = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        if panel.kind == "bargauge":
            options |= {"orientation": "horizontal", "displayMode": "basic"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": "ABCDEFGH"[i],
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "instant": query.instant,
                "range": not query.instant,
                **({"format": "table"} if panel.kind == "table" else {}),
            }
            for i, query in enumerate(panel.queries)
        ],
    }
