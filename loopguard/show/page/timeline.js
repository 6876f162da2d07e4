// When: a lane for each process, a bar for each stall, as high as it was long; dragging over it chooses a time.

const AXIS = 22;
const STEPS = [
  0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
  86400, 172800, 604800, 1209600, 2592000, 7776000, 31536000,
];

function timeline(page) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  const brush = element("div", { className: "brush", hidden: true });
  const tip = element("div", { className: "tip", hidden: true, "aria-hidden": "true" });
  const plot = element("div", {
    id: "plot", className: "plot", tabIndex: 0, role: "slider", "aria-label": "chosen time",
    "aria-describedby": "plot-help", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0,
  }, canvas, brush, tip);
  const lanes = element("div", { className: "lanes" });
  const help = element("p", { id: "plot-help", className: "note" },
    "A bar is as high as the stall was long. Drag, or press ← → and Shift, to choose a time; Esc for all.");
  const node = section("timeline", "When", zone(), element("div", { className: "timeline" }, lanes, plot), help);
  const view = { page, canvas, brush, tip, plot, lanes };
  listenToPointer(view);
  listenToKeys(view);
  new ResizeObserver(() => drawTimeline(view)).observe(plot);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", () => drawTimeline(view));
  }
  return { node, draw: () => drawTimeline(view) };
}

function scaleOf(view) {
  const { stalls, processes } = view.page.store;
  const first = Math.min(...chunked(stalls, (stall) => stall.at, Math.min));
  const last = Math.max(...chunked(stalls, (stall) => stall.at + stall.duration, Math.max));
  const margin = Math.max((last - first) * 0.01, 0.05);
  const [from, to] = stalls.length ? [first - margin, last + margin] : [0, 1];
  const width = view.plot.clientWidth;
  const count = Math.max(1, processes.length);
  const lane = count <= 4 ? 56 : count <= 12 ? 34 : 18;
  return {
    from, to, width, lane, height: lane * count + AXIS,
    longest: Math.max(0.001, ...chunked(stalls, (stall) => stall.duration, Math.max)),
    shortest: Math.min(1e9, ...chunked(stalls, (stall) => stall.duration, Math.min)),
    x: (time) => ((time - from) / (to - from)) * width,
    time: (x) => from + (Math.max(0, Math.min(width, x)) / width) * (to - from),
  };
}

// Math.min takes only so many arguments at a time.
function chunked(items, value, best) {
  const found = [];
  for (let index = 0; index < items.length; index += 10000) {
    found.push(best(...items.slice(index, index + 10000).map(value)));
  }
  return found;
}

function drawTimeline(view) {
  const { canvas, plot, lanes, page } = view;
  const scale = view.scale = scaleOf(view);
  if (!scale.width) return;
  const ratio = window.devicePixelRatio || 1;
  plot.style.height = `${scale.height}px`;
  canvas.width = Math.round(scale.width * ratio);
  canvas.height = Math.round(scale.height * ratio);
  lanes.replaceChildren(...page.store.processes.map((process) => laneName(process, scale.lane)));
  const context = canvas.getContext("2d");
  const style = getComputedStyle(plot);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  context.scale(ratio, ratio);
  drawAxis(context, scale, colour, style);
  drawBars(context, scale, colour, page);
  drawBrush(view);
}

function laneName(process, height) {
  const { loop_seconds: watched } = process;
  const label = element("div", { className: "lane", title: `${process.host} ${process.instance} pid ${process.pid}` },
    element("span", { className: "lane-name" }, process.name));
  if (height > 30) {
    label.append(element("span", { className: "lane-note" }, `pid ${process.pid} · ${seconds(watched)} watched`));
  }
  label.style.height = `${height}px`;
  return label;
}

function drawAxis(context, scale, colour, style) {
  const wanted = Math.max(2, Math.floor(scale.width / 110));
  const step = STEPS.find((each) => (scale.to - scale.from) / each <= wanted) || STEPS[STEPS.length - 1];
  const offset = step >= 3600 ? new Date(scale.from * 1000).getTimezoneOffset() * 60 : 0;
  const base = scale.height - AXIS;
  context.font = `11px ${style.fontFamily}`;
  context.textBaseline = "middle";
  for (let time = Math.ceil((scale.from - offset) / step) * step + offset; time <= scale.to; time += step) {
    const x = Math.round(scale.x(time)) + 0.5;
    context.fillStyle = colour("hairline");
    context.fillRect(x - 0.5, 0, 1, base + 4);
    const words = step >= 86400 ? day(time).slice(5) : step >= 60 ? clock(time).slice(0, 5) : clock(time, step < 0.1 ? 2 : step < 1 ? 1 : 0);
    const half = context.measureText(words).width / 2;
    context.fillStyle = colour("muted");
    context.fillText(words, Math.max(0, Math.min(scale.width - 2 * half, x - half)), base + 13);
  }
  context.fillStyle = colour("hairline");
  for (let lane = scale.lane; lane <= base; lane += scale.lane) context.fillRect(0, lane - 1, scale.width, 1);
}

function heightOf(stall, scale) {
  const room = scale.lane - 8;
  if (scale.longest <= scale.shortest * 1.2) return room * 0.7;
  const share = Math.log(stall.duration / scale.shortest) / Math.log(scale.longest / scale.shortest);
  return room * (0.22 + 0.78 * Math.max(0, share));
}

function drawBars(context, scale, colour, page) {
  const lanes = new Map(page.store.processes.map((process, index) => [process, index]));
  const [shown, others] = [[], []];
  // The longest first: the shorter ones stand before them.
  for (const stall of [...page.store.stalls].sort((a, b) => b.duration - a.duration)) {
    (chosen(stall, page.state, "time") ? shown : others).push(stall);
  }
  const bar = (stall) => {
    const x = scale.x(stall.at);
    const height = heightOf(stall, scale);
    const bottom = (lanes.get(stall.process) + 1) * scale.lane - 1;
    context.fillRect(x, bottom - height, Math.max(2, scale.x(stall.at + stall.duration) - x), height);
  };
  context.fillStyle = colour("faint");
  others.forEach(bar);
  for (const stall of shown) {
    context.globalAlpha = chosen(stall, page.state) ? 1 : 0.25;
    context.fillStyle = colour(stall.cause);
    bar(stall);
  }
  context.globalAlpha = 1;
}

function drawBrush(view) {
  const { brush, plot, scale, page } = view;
  const [from, to] = view.dragged || [page.state.from, page.state.to];
  brush.hidden = from === null;
  plot.setAttribute("aria-valuetext", from === null ? "all" : timespan(from, to));
  if (from === null) return;
  plot.setAttribute("aria-valuenow", Math.round(Math.max(0, Math.min(100, (scale.x(from) / scale.width) * 100))));
  const [left, right] = [Math.max(0, scale.x(from)), Math.min(scale.width, scale.x(to))];
  brush.style.left = `${left}px`;
  brush.style.width = `${Math.max(1, right - left)}px`;
  brush.style.height = `${scale.height - AXIS}px`;
}

function listenToPointer(view) {
  const { plot, page } = view;
  const at = (event) => event.clientX - plot.getBoundingClientRect().left;
  let start = null;
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !view.scale) return;
    start = at(event);
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointermove", (event) => {
    if (start === null) return showTip(view, event);
    view.tip.hidden = true;
    if (Math.abs(at(event) - start) < 4) return undefined;
    view.dragged = [start, at(event)].sort((a, b) => a - b).map(view.scale.time);
    return drawBrush(view);
  });
  plot.addEventListener("pointerup", (event) => {
    if (start === null) return;
    start = null;
    const dragged = view.dragged;
    view.dragged = null;
    if (dragged) return page.change({ from: dragged[0], to: dragged[1] });
    const stall = nearest(view, event);
    if (stall) page.open(stall);
    else if (page.state.from !== null) page.change({ from: null, to: null });
  });
  plot.addEventListener("pointercancel", () => {
    start = view.dragged = null;
    drawBrush(view);
  });
  plot.addEventListener("pointerleave", () => { view.tip.hidden = true; });
}

function nearest(view, event) {
  const { scale, page } = view;
  const box = view.plot.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const process = page.store.processes[Math.floor(y / scale.lane)];
  let [best, distance] = [null, 5];
  for (const stall of page.store.stalls) {
    if (stall.process !== process || !chosen(stall, page.state)) continue;
    const [left, right] = [scale.x(stall.at), scale.x(stall.at + stall.duration)];
    const away = Math.max(left - x, x - right, 0);
    if (away < distance || (away === distance && best && stall.duration > best.duration)) [best, distance] = [stall, away];
  }
  return best;
}

function showTip(view, event) {
  const { tip, plot } = view;
  const stall = view.scale && nearest(view, event);
  tip.hidden = !stall;
  plot.style.cursor = stall ? "pointer" : "";
  if (!stall) return;
  tip.replaceChildren(
    element("div", { className: "tip-head" }, swatch(stall.cause), `${seconds(stall.duration)} ${stall.cause}`),
    element("div", {}, `${blamed(stall)}${stall.culprit ? `, ${place(stall.culprit)}` : ""}`),
    element("div", { className: "muted" }, [clock(stall.at, 3), stall.route].filter(Boolean).join(" · ")),
  );
  const x = event.clientX - plot.getBoundingClientRect().left;
  const width = tip.offsetWidth;
  tip.style.left = `${Math.max(0, Math.min(plot.clientWidth - width, x - width / 2))}px`;
}

function listenToKeys(view) {
  const { plot, page } = view;
  plot.addEventListener("keydown", (event) => {
    const { from, to } = page.state;
    if (event.key === "Escape") return page.change({ from: null, to: null });
    const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!way || !view.scale) return undefined;
    event.preventDefault();
    const all = view.scale.to - view.scale.from;
    if (from === null) return page.change({ from: view.scale.from, to: view.scale.from + all / 10 });
    const step = (way * all) / 50;
    if (event.shiftKey) return page.change({ from, to: Math.max(from + all / 200, to + step) });
    return page.change({ from: from + step, to: to + step });
  });
}
