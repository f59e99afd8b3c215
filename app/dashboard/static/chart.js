// The overview's chart: bars of events by type, stacked, drawn by uPlot; the last bar grows with what comes in.
"use strict";

(() => {
  const place = document.getElementById("chart");
  if (!place || !window.uPlot) return;
  const data = JSON.parse(place.dataset.points);
  const names = Object.keys(data.series);
  const legend = new Map([...document.querySelectorAll("[data-total]")].map((cell) => [cell.dataset.total, cell]));
  const totals = new Map(names.map((name) => [name, data.series[name].reduce((sum, count) => sum + count, 0)]));
  let plot = null;
  let stale = false;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // From the whole stack down to its lowest part: each is drawn over the one before.
  function stacked() {
    const sums = data.starts.map(() => 0);
    const layers = names.map((name) => data.series[name].map((count, at) => (sums[at] += count)));
    return [data.starts, ...layers.reverse()];
  }

  function axis(size, extra) {
    return {
      stroke: colour("--soft"), font: "12px system-ui, sans-serif", size,
      grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, ...extra,
    };
  }

  function options() {
    const bars = uPlot.paths.bars({ size: [0.8, 40], align: 1 });
    const layers = names.map((name) => ({
      label: name, paths: bars, points: { show: false }, width: 0,
      fill: colour(legend.has(name) && name !== "unknown" ? `--k-${name}` : "--k-other"),
    })).reverse();
    return {
      width: place.clientWidth, height: place.clientHeight, padding: [8, 26, 0, 0], legend: { show: false },
      cursor: { show: false }, tzDate: (ts) => uPlot.tzDate(new Date(ts * 1000), "Etc/UTC"),
      scales: { x: { range: (_, low, high) => [low, high + data.step] }, y: { range: (_, low, high) => [0, Math.max(high * 1.08, 4)] } },
      series: [{}, ...layers],
      axes: [
        axis(26, { grid: { show: false }, space: 80, incrs: steps, values: (_, marks) => marks.map(clock) }),
        axis(44, { space: 40, values: (_, marks) => marks.map(short) }),
      ],
    };
  }

  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880].map((minutes) => 60 * minutes);
  const short = (count) => (count >= 1e6 ? `${count / 1e6} M` : count >= 1e4 ? `${count / 1e3} k` : count.toLocaleString("en"));
  const two = (number) => String(number).padStart(2, "0");
  const days = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];

  function clock(seconds) {
    const at = new Date(seconds * 1000);
    if (data.step >= 3600 && at.getUTCHours() === 0) return `${days[at.getUTCDay()]} ${at.getUTCDate()}`;
    return `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}`;
  }

  function draw() {
    if (plot) plot.destroy();
    place.replaceChildren();
    plot = new uPlot(options(), stacked(), place);
  }

  function drop() {
    data.starts.shift();
    for (const name of names) totals.set(name, totals.get(name) - data.series[name].shift());
  }

  // Steps that have begun since the last look.
  function move() {
    const now = Math.floor(Date.now() / 1000 / data.step) * data.step;
    let last = data.starts[data.starts.length - 1];
    while (last < now) {
      last += data.step;
      data.starts.push(last);
      for (const name of names) data.series[name].push(0);
      if (data.starts.length > data.most) drop();
      stale = true;
    }
  }

  document.addEventListener("events", ({ detail }) => {
    move();
    for (const [type, count] of Object.entries(detail.counts)) {
      const name = data.series[type] ? type : "unknown";
      if (!data.series[name]) continue;
      const more = Math.round(count * detail.scale);
      data.series[name][data.starts.length - 1] += more;
      totals.set(name, totals.get(name) + more);
    }
    stale = true;
  });

  // At most twice a second, and only when something changed and somebody looks.
  setInterval(() => {
    move();
    if (!stale || document.hidden) return;
    stale = false;
    plot.setData(stacked());
    for (const [name, cell] of legend) cell.textContent = totals.get(name).toLocaleString("en");
  }, 500);

  document.addEventListener("themechange", draw);
  new ResizeObserver(() => {
    if (plot && plot.width !== place.clientWidth) plot.setSize({ width: place.clientWidth, height: place.clientHeight });
  }).observe(place);
  draw();
})();
