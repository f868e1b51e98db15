// Live pages: the state of the stream, holding it, and the charts (uPlot) that its points feed.
(() => {
  "use strict";
  const live = document.getElementById("live");
  const bar = document.getElementById("live-state");
  const button = document.getElementById("pause");
  if (!live) return;
  let held = false;
  let real = ["waiting", "Connecting"]; // how it stands, also while the page is held

  const show = (state, word) => {
    if (!bar) return;
    bar.dataset.state = state;
    bar.querySelector(".live-word").textContent = word;
  };
  const say = (...now) => {
    real = now;
    if (!held) show(...now);
  };
  if (button) {
    button.hidden = false;
    document.getElementById("renew").hidden = true;
    button.addEventListener("click", () => {
      held = !held;
      if (held) show("held", "Paused");
      else show(...real);
      button.setAttribute("aria-pressed", String(held));
      button.querySelector("span").textContent = held ? "Go on" : "Pause";
    });
  }
  const TOO_MANY = 429;
  const FIRST_PAUSE_MS = 3000;
  const LONGEST_PAUSE_MS = 30000;
  let pauseMs = FIRST_PAUSE_MS;
  let isAgain = false; // another try is due
  const failed = (status) => {
    say("lost", status === TOO_MANY ? "Too many live pages are open, trying again" : "No connection, trying again");
    // The login is over: the page itself leads to a new one.
    if (status === 401) location.reload();
  };
  // The extension keeps up a stream that stood once; where none ever did, it does not try again.
  const never = (status) => {
    if (live._htmx?.sse || isAgain) return;
    failed(status);
    isAgain = true;
    setTimeout(() => {
      isAgain = false;
      if (!live._htmx?.sse) htmx.ajax("GET", live.getAttribute("hx-sse:connect"), { source: live });
    }, pauseMs);
    pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
  };
  live.addEventListener("htmx:response:error", (event) => never(event.detail.ctx.response.status));
  live.addEventListener("htmx:error", () => never());
  live.addEventListener("htmx:sse:after:connection", () => say("live", "Live"));
  live.addEventListener("htmx:sse:before:message", (event) => {
    // What is HTML stays out while it is held; points are kept, and drawn afterwards.
    if (held && !event.detail.message.event) event.preventDefault();
  });
  live.addEventListener("htmx:sse:error", (event) => failed(event.detail.status));

  // Charts

  // x is Unix time in seconds, so that what is drawn already need not be counted again.
  const store = { span: 300, now: 0, tiers: [], dots: { x: [], tier: [], 2: [], 3: [] }, samples: [] };
  const charts = new Map();
  const MOST_Y = 400; // % of the promise: what is worse stands at the edge
  const SIZE = 4;

  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const colour = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  let paint = {};
  const readColours = () => {
    paint = { text: colour("--muted"), line: colour("--line"), bad: colour("--bad") };
    paint.tiers = [0, 1, 2, 3, 4, 5].map((n) => colour(`--tier-${n}`));
  };
  const tierColour = (n) => paint.tiers[Math.min(n, 5)];

  // Squares, one for a place however many requests are there: a chart has fewer places than dots.
  const drawDots = (column) => (u) => {
    const { ctx, bbox } = u;
    const { x, tier } = store.dots;
    const y = store.dots[column];
    const size = SIZE * devicePixelRatio;
    const cell = size / 2;
    const columns = Math.ceil(bbox.width / cell) + 1;
    const taken = new Uint8Array(columns * (Math.ceil(bbox.height / cell) + 1));
    const from = store.now - store.span;
    const perX = bbox.width / store.span;
    const high = u.scales.y.max;
    const perY = bbox.height / high;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top - size, bbox.width + size, bbox.height + 2 * size);
    ctx.clip();
    let last = -1;
    for (let i = x.length - 1; i >= 0; i--) { // the latest on top of nobody: they are drawn first
      const value = y[i];
      if (value === null || x[i] < from) continue;
      const left = (x[i] - from) * perX;
      const top = (high - Math.min(value, high)) * perY;
      const place = Math.floor(top / cell) * columns + Math.floor(left / cell);
      const bit = 1 << Math.min(tier[i], 5);
      if (taken[place] & bit) continue;
      taken[place] |= bit;
      if (tier[i] !== last) {
        last = tier[i];
        ctx.fillStyle = tierColour(last);
      }
      ctx.fillRect(bbox.left + left - cell, bbox.top + top - cell, size, size);
    }
    const promised = bbox.top + (high - 100) * perY;
    ctx.strokeStyle = paint.bad;
    ctx.lineWidth = 2 * devicePixelRatio;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, promised);
    ctx.lineTo(bbox.left + bbox.width, promised);
    ctx.stroke();
    ctx.restore();
  };

  const axes = () => {
    const shared = {
      stroke: () => paint.text, grid: { stroke: () => paint.line, width: 1 }, ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    const splits = (u) => {
      const num = u.width < 420 ? 3 : 5;
      return [...Array(num + 1).keys()].map((n) => store.now - (store.span * (num - n)) / num);
    };
    const ago = (t) => (t === store.now ? "now" : `−${Math.round(store.now - t)} s`);
    return [
      { ...shared, size: 28, splits, values: (u, ticks) => ticks.map(ago) },
      { ...shared, size: 48, values: (u, ticks) => ticks.map((t) => (t >= 10000 ? `${t / 1000}k` : t)) },
    ];
  };

  const build = (holder, series, range, hooks) => new uPlot({
    width: Math.max(holder.clientWidth, 100), height: holder.clientHeight,
    legend: { show: false }, cursor: { show: false },
    scales: { x: { time: false, range: () => [store.now - store.span, store.now] }, y: { range } },
    axes: axes(), series: [{}, ...series], hooks,
  }, [[], ...series.map(() => [])], holder);

  const dotChart = (column) => ({
    series: () => [{ show: true, paths: () => null, points: { show: false } }],
    range: () => {
      let most = 125;
      for (const value of store.dots[column]) if (value > most) most = value;
      return [0, Math.min(most, MOST_Y)];
    },
    hooks: { draw: [drawDots(column)] },
    data: () => [[store.now - store.span, store.now], [0, 0]],
  });
  const lineChart = (names, options = {}) => ({
    series: () => names().map(([label], n) => ({ label, stroke: () => tierColour(n), width: 2, points: { show: false } })),
    range: (u, low, high) => [0, options.most || Math.max(options.least || 4, (high || 0) * 1.1)],
    hooks: {},
    data: () => [store.samples.map((one) => one.t / 1000), ...names().map(([, read]) => store.samples.map(read))],
  });
  const kinds = {
    ttft: dotChart(2),
    tbt: dotChart(3),
    rate: lineChart(() => [["Output", (s) => s.out], ["Computed", (s) => s.computed]], { least: 10 }),
    queue: lineChart(() => store.tiers.map((tier) => [tier, (s) => s.waiting[tier] || 0])),
    memory: lineChart(() => [["Device", (s) => s.kv], ["Parked on the host", (s) => s.host]], { most: 100 }),
  };

  // One chart a frame: none of them holds up the browser for long.
  let waiting = [];
  const drawNext = () => {
    const id = waiting.shift();
    if (id === undefined) return;
    const holder = document.getElementById(`plot-${id}`);
    if (holder) {
      const kind = kinds[id];
      let chart = charts.get(id);
      if (!chart || chart.root.parentNode !== holder) {
        if (chart) chart.destroy();
        holder.replaceChildren();
        chart = build(holder, kind.series(), kind.range, kind.hooks);
        charts.set(id, chart);
      }
      chart.setData(kind.data());
    }
    if (waiting.length) requestAnimationFrame(drawNext);
  };
  const draw = () => {
    if (typeof uPlot === "undefined" || document.hidden) return;
    const isIdle = waiting.length === 0;
    waiting = Object.keys(kinds);
    if (isIdle) requestAnimationFrame(drawNext);
  };
  const rebuild = () => {
    readColours();
    for (const chart of charts.values()) chart.redraw(true, true);
  };

  readColours();
  live.addEventListener("points", (event) => {
    const news = JSON.parse(event.detail.data);
    if (news.tiers.join() !== store.tiers.join()) {
      for (const chart of charts.values()) chart.destroy();
      charts.clear();
    }
    if (news.reset) {
      store.dots = { x: [], tier: [], 2: [], 3: [] };
      store.samples = [];
    }
    store.tiers = news.tiers;
    store.span = news.span_s;
    store.now = news.now / 1000;
    const { dots } = store;
    for (const [at, tier, ttft, tbt] of news.dots) {
      dots.x.push(at / 1000);
      dots.tier.push(tier);
      dots[2].push(ttft);
      dots[3].push(tbt);
    }
    const oldest = store.now - store.span;
    let old = 0;
    while (old < dots.x.length && dots.x[old] < oldest) old++;
    if (old > 500) for (const list of Object.values(dots)) list.splice(0, old);
    store.samples = store.samples.concat(news.samples).filter((one) => one.t / 1000 > oldest);
    if (!held) draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", rebuild);
  new ResizeObserver(() => {
    for (const chart of charts.values()) {
      const holder = chart.root.parentNode;
      if (holder && holder.clientWidth) chart.setSize({ width: holder.clientWidth, height: holder.clientHeight });
    }
  }).observe(live);
})();
