// What held the loop: a row for each culprit, which opens to everything about its stalls.

const MOST_ROWS = 100;
const COLUMNS = [
  { sort: "seconds", name: "Blocked", figure: true },
  { sort: "count", name: "Stalls", figure: true },
  { sort: "longest", name: "Longest", figure: true },
  { sort: "delayed", name: "Delayed", figure: true },
  { sort: "cause", name: "Cause" },
  { sort: "name", name: "Culprit" },
];

function culpritTable(page) {
  const body = element("div");
  let most = MOST_ROWS;
  const draw = () => {
    const culprits = ordered(culpritsOf(page.stalls), page.state);
    if (!culprits.length) return body.replaceChildren(element("p", { className: "empty" }, "No stall here."));
    const opened = culprits.findIndex((culprit) => culprit.fingerprint === page.state.open);
    most = Math.max(most, opened + 1);
    body.replaceChildren(table(page, culprits.slice(0, most)));
    if (culprits.length > most) {
      const more = element("button", { id: "more-culprits", type: "button" }, `Show all ${grouped.format(culprits.length)}`);
      more.addEventListener("click", () => { most = Infinity; keepingFocus(draw); });
      body.append(more);
    }
    return undefined;
  };
  return { node: section("culprits", "What held the loop", "", body), draw };
}

function ordered(culprits, { sort, ascending }) {
  const value = (culprit) => (sort === "name" ? `${culprit.name} ${culprit.place}` : culprit[sort] ?? -1);
  const way = ascending ? 1 : -1;
  const compare = (a, b) => (typeof a === "string" ? b.localeCompare(a) : a - b);
  return culprits.sort((a, b) => way * compare(value(a), value(b)) || b.seconds - a.seconds);
}

function table(page, culprits) {
  const largest = Math.max(...culprits.map((culprit) => culprit.seconds));
  const head = element("tr", { role: "row" }, COLUMNS.map((column) => headCell(page, column)),
    element("th", { role: "columnheader", scope: "col", className: "advice-cell" }, "Instead"));
  const body = element("tbody", { role: "rowgroup" });
  for (const culprit of culprits) {
    const open = culprit.fingerprint === page.state.open;
    body.append(culpritRow(page, culprit, open, largest));
    if (open) {
      body.append(element("tr", { role: "row", className: "opened" }, element("td", {
        role: "cell", colSpan: COLUMNS.length + 1, id: "opened",
      }, detail(page, culprit))));
    }
  }
  return element("table", { role: "table", className: "culprits", "aria-label": "culprits" },
    element("thead", { role: "rowgroup" }, head), body);
}

function headCell(page, column) {
  const { state } = page;
  const sorted = state.sort === column.sort;
  const arrow = sorted ? (state.ascending ? "↑" : "↓") : "";
  const button = element("button", { id: `sort-${column.sort}`, type: "button" },
    element("span", { className: "arrow", "aria-hidden": "true" }, arrow), column.name);
  button.addEventListener("click", () => page.change({ sort: column.sort, ascending: sorted ? !state.ascending : false }));
  return element("th", {
    role: "columnheader", scope: "col", className: `${column.sort}-cell${column.figure ? " figure" : ""}`,
    "aria-sort": sorted ? (state.ascending ? "ascending" : "descending") : "none",
  }, button);
}

function culpritRow(page, culprit, open, largest) {
  const toggle = element("button", {
    id: `open-${culprit.fingerprint}`, type: "button", className: "toggle", "aria-expanded": open,
    "aria-controls": open ? "opened" : null,
  }, element("span", { className: "name" }, culprit.name), element("span", { className: "place" }, culprit.place));
  const bar = element("span", { className: "bar", "aria-hidden": "true" });
  bar.style.width = `${(culprit.seconds / largest) * 100}%`;
  bar.style.background = `var(--${culprit.cause})`;
  const cell = (name, ...content) => element("td", { role: "cell", className: name }, ...content);
  const row = element("tr", { role: "row", className: open ? "culprit-row open" : "culprit-row" },
    cell("seconds-cell figure", seconds(culprit.seconds), element("span", { className: "track", "aria-hidden": "true" }, bar)),
    cell("count-cell figure", grouped.format(culprit.count), element("span", { className: "unit" }, culprit.count === 1 ? " stall" : " stalls")),
    cell("longest-cell figure", element("span", { className: "unit" }, "longest "), seconds(culprit.longest)),
    cell(`delayed-cell figure${culprit.delayed === null ? " nothing" : ""}`, culprit.delayed === null ? "—" : grouped.format(culprit.delayed),
      element("span", { className: "unit" }, " delayed")),
    cell("cause-cell", swatch(culprit.cause), culprit.cause),
    cell("name-cell", toggle),
    cell("advice-cell", culprit.worst.advice || ""));
  row.addEventListener("click", (event) => {
    if (event.target.closest("a") || getSelection().toString()) return;
    page.change({ open: open ? null : culprit.fingerprint, stall: null });
  });
  return row;
}
