// What changed: a table for each verdict, the largest change first.

const VERDICTS = [
  ["new", "New"], ["worse", "Worse"], ["better", "Better"], ["gone", "Gone"], ["same", "Within a quarter of what it was"],
];

function changeRow(change, largest) {
  const { culprit } = change;
  const name = culprit ? culprit.function : change.contributors ? "many callbacks" : "no line could be seen";
  const figure = (value) => element("td", { className: "figure" }, value ? value.toFixed(3) : "—");
  const bars = element("td", { className: "pair", "aria-hidden": "true" }, bar(change.before, largest, "before"), bar(change.after, largest, "after"));
  return element("tr", {},
    figure(change.before), figure(change.after), bars,
    element("td", { className: "figure" }, `${grouped.format(change.stalls_before)} → ${grouped.format(change.stalls_after)}`),
    element("td", { className: "cause" }, swatch(change.cause), change.cause),
    element("td", {}, element("strong", {}, name), element("span", { className: "place" }, culprit ? place(culprit) : "")),
    element("td", { className: "advice" }, change.advice || ""));
}

function bar(value, largest, name) {
  const made = element("span", { className: `length ${name}` });
  made.style.width = `${(value / largest) * 100}%`;
  return made;
}

function verdictSection(verdict, title, data) {
  const changes = data.diff.changes.filter((change) => change.verdict === verdict);
  if (!changes.length) return null;
  const largest = Math.max(1e-9, ...changes.flatMap((change) => [change.before, change.after]));
  const unit = data.diff.unit === "seconds" ? "s" : "s / h";
  const names = [[`Before, ${unit}`, "figure"], [`After, ${unit}`, "figure"], ["", "pair"], ["Stalls", "figure"], ["Cause", "cause"], ["Culprit", ""], ["Instead", "advice"]];
  return section(verdict, title, number(changes.length, "culprit"),
    element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": title }, element("table", { className: "changes" },
      element("thead", {}, element("tr", {}, names.map(([words, kind]) => (
        words ? element("th", { scope: "col", className: kind }, words) : element("td", { className: kind }))))),
      element("tbody", {}, changes.map((change) => changeRow(change, largest))))));
}

function compared(data) {
  const said = VERDICTS.filter(([verdict]) => data.diff.verdicts[verdict] && verdict !== "same")
    .map(([verdict]) => `${grouped.format(data.diff.verdicts[verdict])} ${verdict}`).join(", ");
  document.getElementById("page").replaceChildren(
    element("header", {},
      element("p", { className: "over" }, data.title || "Blocked event loops, compared",
        element("span", {}, `written ${day(data.written_at)} ${clock(data.written_at)}`)),
      element("h1", {}, element("strong", {}, said || "Nothing changed"), "."),
      data.sides.map((side) => element("p", {}, side)),
      data.notes.map((note) => element("p", { className: "note" }, note))),
    ...VERDICTS.map(([verdict, title]) => verdictSection(verdict, title, data)).filter(Boolean));
  document.getElementById("page").dataset.ready = "true";
}

compared(JSON.parse(document.getElementById("data").textContent));
