"""The style of a report's page: for screens of any width, light or dark, and for paper."""

from __future__ import annotations

STYLE = """
:root {
  --page: #ffffff; --text: #1b2430; --soft: #55606e; --edge: #d5dbe3; --card: #f4f6f9;
  --good: #1c6ea4; --bad: #b3400c; --quiet: #a9b6c6; --area: #d7e6f2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12171e; --text: #e6ebf1; --soft: #a4b0be; --edge: #333d4a; --card: #1a212b;
    --good: #63b3ed; --bad: #ff9d66; --quiet: #4d5a6b; --area: #1d3a52;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
header { border-bottom: 2px solid var(--text); padding-bottom: 16px; margin-bottom: 24px; }
h1 { font-size: 34px; line-height: 1.2; margin: 4px 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 22px; line-height: 1.3; margin: 0 0 12px; }
h3 { font-size: 16px; margin: 20px 0 8px; }
p { margin: 0 0 12px; max-width: 76ch; }
section { margin: 0 0 40px; }
.kind { color: var(--soft); font-weight: 600; margin: 0; }
.when { color: var(--soft); margin: 0; }
.lead { font-size: 20px; line-height: 1.45; }
.warning { border-left: 4px solid var(--bad); padding-left: 12px; margin: 16px 0 0; }
strong.good { color: var(--good); }
strong.bad { color: var(--bad); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; }
.card { background: var(--card); border-radius: 8px; padding: 14px 16px; }
.card h3 { margin: 0; font-size: 14px; color: var(--soft); font-weight: 600; }
.card p { margin: 0; font-size: 14px; color: var(--soft); }
.card .big { font-size: 28px; line-height: 1.3; color: var(--text); }
data { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 0 0 12px; }
.scroll:focus-visible { outline: 2px solid var(--good); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 7px 16px 7px 0; white-space: nowrap; }
.w { white-space: normal; min-width: 30ch; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 1px solid var(--text); }
tbody th { font-weight: 600; }
tbody th, tbody td { border-bottom: 1px solid var(--edge); }
.n { text-align: right; }
figure { margin: 0 0 24px; }
figcaption { font-weight: 600; margin-bottom: 8px; }
svg { display: block; width: 100%; min-width: 620px; max-width: 900px; height: auto; }
svg text { font-size: 12px; fill: var(--soft); font-family: inherit; }
svg .title { fill: var(--text); font-weight: 600; font-size: 13px; }
svg .good { fill: var(--good); }
svg .bad { fill: var(--bad); }
svg .quiet { fill: var(--quiet); }
svg .area { fill: var(--area); }
svg .line { fill: none; stroke: var(--good); stroke-width: 2; }
svg .grid { stroke: var(--edge); stroke-width: 1; }
svg .axis { stroke: var(--soft); stroke-width: 1; }
svg line.goal { stroke: var(--text); stroke-width: 1; stroke-dasharray: 5 4; }
svg text.goal { fill: var(--text); }
pre { background: var(--card); border-radius: 8px; padding: 12px 16px; overflow-x: auto; }
pre, .chain { font: 14px/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
.chain { overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 20px; }
@media print {
  :root {
    --page: #ffffff; --text: #1b2430; --soft: #55606e; --edge: #d5dbe3; --card: #f4f6f9;
    --good: #1c6ea4; --bad: #b3400c; --quiet: #a9b6c6; --area: #d7e6f2;
  }
  @page { margin: 14mm; }
  body { font-size: 11pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  .lead { font-size: 13pt; }
  table { font-size: 7.5pt; }
  th, td { padding: 4px 8px 4px 0; }
  .scroll { overflow: visible; }
  svg { min-width: 0; }
  .cards { grid-template-columns: repeat(4, 1fr); }
  figure, tr, .card, .check { break-inside: avoid; }
  h2, h3, figcaption { break-after: avoid; }
}
"""
