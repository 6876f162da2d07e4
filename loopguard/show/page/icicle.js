// Where the blocked time went, by stack: as wide as it took long. Blocked time, not CPU time.

const NARROWEST = 3;
const ROW = 22;

function icicle(page) {
  const chart = element("div", { id: "icicle", className: "icicle", role: "tree", "aria-label": "blocked time by stack" });
  const caption = element("p", { className: "icicle-caption", "aria-live": "polite" });
  const box = element("input", { type: "checkbox", id: "library" });
  const label = element("label", { className: "choice" }, box, "library frames");
  box.addEventListener("change", () => page.change({ library: box.checked }));
  const node = section("stacks", "Where the blocked time went", "Width is blocked time, not CPU time. Select to zoom, Esc to go back.", chart, caption);
  node.firstChild.append(label);
  const view = { page, chart, caption, zoom: [] };
  view.draw = () => {
    box.checked = page.state.library;
    drawIcicle(view);
  };
  new ResizeObserver(() => { if (chart.clientWidth !== view.width) drawIcicle(view); }).observe(chart);
  chart.addEventListener("keydown", (event) => walk(view, event));
  return { node, draw: view.draw };
}

function drawIcicle(view) {
  const { chart, page } = view;
  view.width = chart.clientWidth;
  const root = treeOf(page.stalls, page.state.library);
  const focus = descend(root, view.zoom);
  const placed = [];
  for (let node = focus; node; node = node.parent) placed.push({ node, left: 0, width: view.width });
  const queue = [placed[0]];
  while (queue.length) {
    const { node, left } = queue.shift();
    let x = left;
    for (const child of largestFirst(node)) {
      const width = (child.seconds / focus.seconds) * view.width;
      if (width < NARROWEST) break;
      const place = { node: child, left: x, width };
      placed.push(place);
      queue.push(place);
      x += width;
    }
  }
  const hadFocus = chart.contains(document.activeElement);
  chart.style.height = `${(Math.max(...placed.map(({ node }) => node.depth)) + 1) * ROW}px`;
  view.cells = new Map(placed.map((each) => [each.node, cell(view, root, each)]));
  chart.replaceChildren(...view.cells.values());
  const first = view.cells.get(focus);
  first.tabIndex = 0;
  if (hadFocus) first.focus({ preventScroll: true });
  else describe(view, root, focus);
}

function descend(root, keys) {
  let node = root;
  for (const key of keys) {
    if (!node.children.has(key)) break;
    node = node.children.get(key);
  }
  return node;
}

function largestFirst(node) {
  return [...node.children.values()].sort((a, b) => b.seconds - a.seconds);
}

function cell(view, root, { node, left, width }) {
  const kind = node.depth === 0 ? "root" : node.folded ? "folded" : node.library ? "foreign" : "own";
  const made = element("div", {
    className: `cell ${kind}`, role: "treeitem", tabIndex: -1, "aria-level": node.depth + 1,
    "aria-label": `${node.name}, ${seconds(node.seconds)}`,
  }, width > 26 ? element("span", { className: "cell-name" }, node.name) : null,
  width > 120 ? element("span", { className: "cell-seconds" }, seconds(node.seconds)) : null);
  made.style.left = `${left}px`;
  made.style.width = `${Math.max(1, width - 1)}px`;
  made.style.top = `${node.depth * ROW}px`;
  made.addEventListener("click", () => zoom(view, node));
  made.addEventListener("mouseenter", () => describe(view, root, node));
  made.addEventListener("focus", () => describe(view, root, node));
  return made;
}

function zoom(view, node) {
  view.zoom = pathTo(node);
  drawIcicle(view);
}

function pathTo(node) {
  return node.parent ? [...pathTo(node.parent), node.key] : [];
}

function describe(view, root, node) {
  const share = root.seconds ? node.seconds / root.seconds : 0;
  view.caption.replaceChildren(
    element("strong", {}, node.name), ` ${seconds(node.seconds)}, ${percent(share)}`,
    node.place ? element("span", { className: "place" }, node.place) : "", node.code ? element("code", {}, node.code) : "");
}

function walk(view, event) {
  const [node] = [...view.cells].find(([, each]) => each === document.activeElement) || [];
  if (!node) return;
  const near = (way) => {
    const siblings = node.parent ? largestFirst(node.parent) : [node];
    return siblings[siblings.indexOf(node) + way];
  };
  const to = {
    ArrowUp: () => node.parent, ArrowDown: () => largestFirst(node)[0], ArrowLeft: () => near(-1), ArrowRight: () => near(1),
  }[event.key];
  if (to) {
    event.preventDefault();
    const next = view.cells.get(to());
    if (next) {
      view.cells.get(node).tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    zoom(view, node);
  } else if (event.key === "Escape" && view.zoom.length) {
    view.zoom = view.zoom.slice(0, -1);
    drawIcicle(view);
  }
}
