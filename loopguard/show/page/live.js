// The page that goes on: what holds a loop now, and every stall as it comes.

const TICK = 100;
const QUIET = 200;

// Early records come at each doubling: where none has come for long, nobody will tell of the end.
function lasting(store) {
  const now = Date.now() / 1000;
  return store.stalls.filter((stall) => stall.rare.ongoing && now - stall.at < 2 * stall.duration + 5);
}

function drawNow(node, store) {
  const stalls = lasting(store);
  const now = Date.now() / 1000;
  node.classList.toggle("held", stalls.length > 0);
  node.replaceChildren(...(stalls.length ? stalls.map((stall) => element("p", { className: "lasting" }, swatch(stall.cause),
    element("strong", { className: "figure" }, seconds(Math.max(stall.duration, now - stall.at))),
    element("span", {}, blamed(stall)), element("span", { className: "place" }, stall.culprit ? place(stall.culprit) : ""),
    element("span", { className: "muted" }, [stall.route, stall.process.name].filter(Boolean).join(" \u00b7 "))))
    : [element("p", { className: "muted" }, "Nothing holds a loop now.")]));
}

function live(data) {
  const node = element("div", { id: "now", role: "group", "aria-label": "held now" });
  const line = element("p", { id: "line", className: "note", role: "status" });
  const page = start(data, node, line);
  const source = new EventSource(`events?after=${data.change}`);
  let waiting = null;
  const draw = () => {
    waiting = null;
    page.draw();
  };
  source.addEventListener("message", (event) => {
    take(page.store, JSON.parse(event.data));
    drawNow(node, page.store);
    waiting ??= setTimeout(draw, QUIET);
  });
  source.addEventListener("open", () => { line.textContent = ""; });
  source.addEventListener("error", () => { line.textContent = "The watch has ended, or cannot be reached."; });
  drawNow(node, page.store);
  setInterval(() => drawNow(node, page.store), TICK);
}

live(JSON.parse(document.getElementById("data").textContent));
