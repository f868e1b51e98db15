// Draws the charts of a page from the JSON beside each: {x: [seconds], lines: [{label, values, place}]},
// where the place of a line's tier is its colour.
// Colours are read from the style sheet when drawing, and again when the scheme changes.
(() => {
  "use strict";
  if (typeof uPlot === "undefined") return;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // light-dark() is resolved only where a property is used.
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color || css(name);
  };
  const compact = new Intl.NumberFormat("en", { notation: "compact" });

  function draw(figure) {
    const data = JSON.parse(document.getElementById(figure.dataset.chart).textContent);
    if (!data.x.length) return null;
    const unit = figure.dataset.unit;
    const isShare = unit === "%";
    const text = (value) => (value === null || value === undefined ? "–" : isShare ? `${value.toFixed(2)} %` : `${compact.format(value)} ${unit}`);
    // Days where the chart is of days, else hours as well; always UTC, as everything here.
    const form = data.to - data.from > 3 * 86400 ? { day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit" };
    const when = new Intl.DateTimeFormat("en-GB", { ...form, timeZone: "UTC" });
    const lone = data.x.length < 3;
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const low = Math.min(...data.lines.flatMap((line) => line.values.filter((v) => v !== null)), 100);
    const options = {
      width: figure.clientWidth,
      height: 220,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1e3), "UTC"),
      scales: { x: { range: [data.from, data.to] }, y: isShare ? { range: [Math.max(0, Math.floor(low - 2)), 100.5] } : { range: (_, __, max) => [0, max || 1] } },
      axes: [{ ...axis, space: 80, values: (_, ticks) => ticks.map((t) => when.format(t * 1000)) }, { ...axis, size: 60, values: (_, ticks) => ticks.map((v) => (isShare ? `${+v.toFixed(2)} %` : compact.format(v))) }],
      series: [
        { value: "{YYYY}-{MM}-{DD} {HH}:{mm} UTC" },
        ...data.lines.map((line, at) => ({
          label: line.label,
          stroke: colour(`--tier-${Math.min(line.place, 5)}`),
          width: 2,
          dash: at % 2 ? [6, 4] : undefined,
          points: { show: lone || data.x.length < 40, size: 5 },
          spanGaps: true,
          value: (_, value) => text(value),
        })),
      ],
    };
    return new uPlot(options, [data.x, ...data.lines.map((line) => line.values)], figure);
  }

  const figures = [...document.querySelectorAll("figure[data-chart]")];
  let plots = [];
  const redraw = () => {
    for (const plot of plots) if (plot) plot.destroy();
    plots = figures.map(draw);
  };
  redraw();
  let timer = 0;
  addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(redraw, 150);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
})();
