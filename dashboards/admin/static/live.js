// Live pages: the state of the stream, holding it, and the charts (uPlot) that its points feed.
(() => {
  "use strict";
  const live = document.getElementById("live");
  const bar = document.getElementById("live-state");
  const button = document.getElementById("pause");
  if (!live) return;
  let held = false;

  const say = (state, word) => {
    if (!bar || held) return;
    bar.dataset.state = state;
    bar.querySelector(".live-word").textContent = word;
  };
  if (button) {
    button.hidden = false;
    document.getElementById("renew").hidden = true;
    button.addEventListener("click", () => {
      if (!held) say("held", "Paused");
      held = !held;
      if (!held) say("live", "Live");
      button.setAttribute("aria-pressed", String(held));
      button.querySelector("span").textContent = held ? "Go on" : "Pause";
    });
  }
  live.addEventListener("htmx:sse:after:connection", () => say("live", "Live"));
  live.addEventListener("htmx:sse:before:message", (event) => {
    // What is HTML stays out while it is held; points are kept, and drawn afterwards.
    if (held && !event.detail.message.event) event.preventDefault();
  });
  live.addEventListener("htmx:sse:error", (event) => {
    say("lost", "No connection, trying again");
    // The login is over: the page itself leads to a new one.
    if (event.detail.status === 401) location.reload();
  });

  // Charts

  const store = { span: 300, tiers: [], dots: [], samples: [], now: 0 };
  const charts = new Map();
  const MOST_Y = 400; // % of the promise: what is worse stands at the edge

  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  let paint = {};
  const readColours = () => {
    paint = { text: colour("--muted"), line: colour("--line"), bad: colour("--bad"), accent: colour("--accent") };
    paint.tiers = [0, 1, 2, 3, 4, 5].map((n) => colour(`--tier-${n}`));
  };
  const tierColour = (n) => paint.tiers[Math.min(n, 5)];

  // Squares in one path: many times cheaper than circles.
  const squares = (u, series, first, last) => {
    const path = new Path2D();
    const size = 4 * devicePixelRatio;
    const xs = u.data[0];
    const ys = u.data[series];
    for (let i = first; i <= last; i++) {
      if (ys[i] == null) continue;
      const x = u.valToPos(xs[i], "x", true) - size / 2;
      const y = u.valToPos(ys[i], "y", true) - size / 2;
      path.rect(x, y, size, size);
    }
    return { stroke: null, fill: path, flags: 0 };
  };

  const promiseLine = (u) => {
    const y = u.valToPos(100, "y", true);
    const { ctx, bbox } = u;
    ctx.save();
    ctx.strokeStyle = paint.bad;
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.restore();
  };

  const axes = () => {
    const shared = {
      stroke: () => paint.text, grid: { stroke: () => paint.line, width: 1 }, ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    return [
      { ...shared, space: 70, size: 28, values: (u, ticks) => ticks.map((t) => (t === 0 ? "now" : `${t} s`)) },
      { ...shared, size: 48, values: (u, ticks) => ticks.map((t) => (t >= 10000 ? `${t / 1000}k` : t)) },
    ];
  };

  const build = (id, holder, series, options) => new uPlot({
    width: Math.max(holder.clientWidth, 100), height: holder.clientHeight,
    legend: { show: false }, cursor: { show: false },
    scales: { x: { time: false, range: () => [-store.span, 0] }, y: { range: options.range } },
    axes: axes(), series: [{}, ...series], hooks: options.hooks || {},
  }, [[], ...series.map(() => [])], holder);

  const dotChart = (column) => ({
    series: () => store.tiers.map((tier, n) => ({
      label: tier, fill: () => tierColour(n), stroke: () => tierColour(n), paths: squares, points: { show: false },
    })),
    options: { range: (u, low, high) => [0, Math.max(125, Math.min(MOST_Y, high || 0) * 1.05)], hooks: { draw: [promiseLine] } },
    data: () => {
      const xs = [];
      const ys = store.tiers.map(() => []);
      const index = new Map(store.tiers.map((tier, n) => [tier, n]));
      for (const dot of store.dots) {
        const n = index.get(dot[1]);
        if (n === undefined || dot[column] === null) continue;
        xs.push((dot[0] - store.now) / 1000);
        ys.forEach((y, m) => y.push(m === n ? Math.min(dot[column], MOST_Y) : null));
      }
      return [xs, ...ys];
    },
  });
  const lineChart = (names, options = {}) => ({
    series: () => names().map(([label], n) => ({ label, stroke: () => tierColour(n), width: 2, points: { show: false } })),
    options: { range: (u, low, high) => [0, options.most || Math.max(options.least || 4, (high || 0) * 1.1)] },
    data: () => {
      const xs = store.samples.map((one) => (one.t - store.now) / 1000);
      return [xs, ...names().map(([, read]) => store.samples.map(read))];
    },
  });
  const kinds = {
    ttft: dotChart(2),
    tbt: dotChart(3),
    rate: lineChart(() => [["Output", (s) => s.out], ["Computed", (s) => s.computed]], { least: 10 }),
    queue: lineChart(() => store.tiers.map((tier) => [tier, (s) => s.waiting[tier] || 0])),
    memory: lineChart(() => [["Device", (s) => s.kv], ["Parked on the host", (s) => s.host]], { most: 100 }),
  };

  const draw = () => {
    if (typeof uPlot === "undefined" || document.hidden) return;
    for (const [id, kind] of Object.entries(kinds)) {
      const holder = document.getElementById(`plot-${id}`);
      if (!holder) continue;
      let chart = charts.get(id);
      if (!chart || chart.root.parentNode !== holder) {
        if (chart) chart.destroy();
        holder.replaceChildren();
        chart = build(id, holder, kind.series(), kind.options);
        charts.set(id, chart);
      }
      chart.setData(kind.data());
    }
  };
  const rebuild = () => {
    readColours();
    for (const chart of charts.values()) chart.redraw(true, true);
  };

  readColours();
  live.addEventListener("points", (event) => {
    const news = JSON.parse(event.detail.data);
    if (news.reset || news.tiers.join() !== store.tiers.join()) {
      if (news.tiers.join() !== store.tiers.join()) {
        for (const chart of charts.values()) chart.destroy();
        charts.clear();
      }
      store.dots = [];
      store.samples = [];
    }
    store.tiers = news.tiers;
    store.span = news.span_s;
    store.now = news.now;
    const oldest = news.now - 1000 * news.span_s;
    store.dots = store.dots.concat(news.dots).filter((dot) => dot[0] > oldest);
    store.samples = store.samples.concat(news.samples).filter((one) => one.t > oldest);
    if (!held) requestAnimationFrame(draw);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  new ResizeObserver(() => {
    for (const chart of charts.values()) {
      const holder = chart.root.parentNode;
      if (holder && holder.clientWidth) chart.setSize({ width: holder.clientWidth, height: holder.clientHeight });
    }
  }).observe(live);
})();
