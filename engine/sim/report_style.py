"""The look of a report: one style sheet for light and dark, screen and paper; it knows no data."""

from __future__ import annotations

from engine.sim.plots import NUM_COLOURS

# Ten hues that stay apart for most eyes, a darker set for paper, a lighter one for dark screens.
LIGHT = (
    "#0b62d6", "#d9480f", "#0a8a5f", "#b5179e", "#8a6d00",
    "#0e8aa8", "#6d4bd8", "#c2255c", "#4d7c0f", "#5f6b7a",
)  # fmt: skip
DARK = (
    "#6cb0ff", "#ff9a5c", "#4fd1a1", "#f18ae0", "#e0c14a",
    "#5fd0ea", "#b8a2ff", "#ff8fb0", "#a9d35f", "#aab6c4",
)  # fmt: skip

COLOURS = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#171c24;--soft:#566070;
--line:#d9dee6;--grid:#e9ecf1;--good:#0a7d4b;--good-bg:#e3f5ec;--bad:#b02a1c;--bad-bg:#fdecea;
--ref:#7a8494;--accent:#0b62d6}
@media (prefers-color-scheme:dark){:root{--page:#0e1116;--card:#161b22;--ink:#e7ecf3;
--soft:#9aa6b6;--line:#2d3542;--grid:#232a35;--good:#5ed39c;--good-bg:#12301f;--bad:#ff9d8f;
--bad-bg:#3a1a17;--ref:#8592a4;--accent:#6cb0ff}}
"""

PLOTS = """
svg text{fill:var(--soft);font:12px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;
font-variant-numeric:tabular-nums}
svg text.label{fill:var(--ink)}
svg text.name,svg text.value{fill:var(--ink);font-size:13.5px}
svg text.value{font-weight:600}
svg text.reftext{fill:var(--ref);font-size:11.5px;paint-order:stroke;stroke:var(--card);
stroke-width:3px}
.grid{stroke:var(--grid);fill:none}
.grid.minor{stroke-opacity:.6}
.axis{stroke:var(--line);fill:none}
.ref{stroke:var(--ref);stroke-dasharray:5 4;fill:none}
.line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}
.band{fill:currentColor;opacity:.1}
.mark{fill:currentColor;stroke:var(--card);stroke-width:1}
.hit{fill:none;stroke:transparent;stroke-width:12;pointer-events:all}
.bar{fill:currentColor;opacity:.78}
.bar.open{opacity:.42}
.whisker{stroke:var(--ink);stroke-width:1.4;fill:none}
.run{fill:var(--card);stroke:var(--ink);stroke-width:.9}
svg:has(.series:hover) .series:not(:hover){opacity:.2}
.series:hover .line{stroke-width:3}
"""

PAGE = """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1240px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:27px;line-height:1.2;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:19px;margin:38px 0 4px}
h3{font-size:15px;margin:0 0 2px}
p{margin:0 0 12px;max-width:82ch}
.soft,figcaption{color:var(--soft)}
dl.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:10px 22px;
margin:18px 0 0;padding:14px 16px;background:var(--card);border:1px solid var(--line);
border-radius:10px}
dl.facts div{min-width:0}
dl.facts div.wide{grid-column:1/-1}
dt{color:var(--soft);font-size:12px}
dd{margin:0;overflow-wrap:anywhere}
.legend,.rates{display:flex;flex-wrap:wrap;gap:6px;border:0;margin:14px 0;padding:0}
.legend{position:sticky;top:0;z-index:2;padding:10px 0;background:var(--page)}
legend{float:left;color:var(--soft);font-size:13px;padding:5px 8px 0 0}
.chip{display:inline-flex;align-items:center;gap:7px;border:1px solid var(--line);
border-radius:999px;padding:3px 12px 3px 8px;background:var(--card);cursor:pointer;font-size:14px}
.chip input{position:absolute;opacity:0;width:1px;height:1px}
.chip:has(input:focus-visible){outline:2px solid var(--accent);outline-offset:2px}
.legend .chip:has(input:not(:checked)){opacity:.45;text-decoration:line-through}
.rates .chip{padding:3px 12px}
.rates .chip:has(input:checked){background:var(--accent);border-color:var(--accent);
color:var(--card);font-weight:600}
.swatch{width:30px;height:14px;flex:none}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,480px),1fr));gap:16px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:14px 14px 8px;min-width:0}
figure.wide{grid-column:1/-1;overflow-x:auto}
figure.wide svg{min-width:720px}
figcaption{font-size:13px;margin-bottom:6px}
figcaption b{display:block;color:var(--ink);font-size:15px}
svg{display:block;width:100%;height:auto}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{padding:6px 9px;text-align:right;white-space:nowrap;border-top:1px solid var(--grid)}
thead th{color:var(--soft);font-weight:600;font-size:12.5px;border-top:0;
border-bottom:1px solid var(--line);vertical-align:bottom}
th[scope=row],th.left,td.left{text-align:left}
tbody th{font-weight:600;position:sticky;left:0;background:var(--card)}
tbody.group tr:first-child>*{border-top:1px solid var(--line)}
th .swatch{display:inline-block;vertical-align:-2px;margin-right:8px}
td small{color:var(--soft)}
td.good{background:var(--good-bg);color:var(--good)}
td.bad{color:var(--bad)}
td.bad.far{background:var(--bad-bg)}
code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
footer{margin-top:44px;color:var(--soft);font-size:13px}
@media (max-width:800px),(max-height:600px){.legend{position:static}}
@media print{body{background:#fff}.legend{position:static}figure,.scroll{break-inside:avoid}}
"""


def style(num_series: int, num_rates: int) -> str:
    """Return the style sheet for a page with so many policies and rates to choose from.

    What is shown follows the boxes by `:has()`, without a script; a browser that does not know it
    shows everything.
    """
    hidden = "".join(
        f"body:has(#policy-{i}:not(:checked)) :is(.series,tr).n{i}{{display:none}}"
        for i in range(num_series)
    )
    chosen = "".join(
        f"body:has(#rate-{i}:checked) .at-rate:not(.rate-{i}){{display:none}}"
        for i in range(num_rates)
    )
    return f"{_colours()}{PAGE}{PLOTS}{hidden}{chosen}"


def alone(svg: str) -> str:
    """Return a plot as a file of its own: with the rules that it otherwise finds on the page."""
    head, body = svg.split(">", 1)
    backdrop = '<rect width="100%" height="100%" rx="8" fill="var(--card)"/>'
    return f"{head}><style>{_colours()}{PLOTS}</style>{backdrop}{body}\n"


def _colours() -> str:
    light = "".join(f"--p{i}:{LIGHT[i]};" for i in range(NUM_COLOURS))
    dark = "".join(f"--p{i}:{DARK[i]};" for i in range(NUM_COLOURS))
    classes = "".join(f".s{i}{{color:var(--p{i})}}" for i in range(NUM_COLOURS))
    return (
        f"{COLOURS}:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}"
    )
