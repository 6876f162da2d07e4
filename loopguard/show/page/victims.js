// Who had to wait: the routes whose requests were delayed, and who made them wait.

function victimTable(page) {
  const body = element("div");
  const draw = () => body.replaceChildren(victimContent(page));
  return { node: section("victims", "Who had to wait", "", body), draw };
}

function victimContent(page) {
  const victims = victimsOf(page.stalls);
  if (!victims.length) {
    const known = page.stalls.some((stall) => stall.delayed !== null);
    const words = known ? "No other request was delayed." : "These records do not tell which requests were delayed.";
    return element("p", { className: "empty" }, words);
  }
  const names = ["Waited", "Requests", "Longest", "Route", "Mostly for"];
  return element("table", { className: "victims", "aria-label": "routes that had to wait" },
    element("thead", {}, element("tr", {}, names.map((name, index) => (
      element("th", { scope: "col", className: index < 3 ? "figure" : "" }, name))))),
    element("tbody", {}, victims.slice(0, 50).map((victim) => victimRow(page, victim))));
}

function victimRow(page, victim) {
  const { stall, total } = [...victim.by.values()].reduce((most, each) => (each.total > most.total ? each : most));
  const to = element("button", { type: "button", className: "link" }, blamed(stall));
  to.addEventListener("click", () => page.open(stall));
  return element("tr", {},
    element("td", { className: "figure" }, seconds(victim.total)),
    element("td", { className: "figure" }, grouped.format(victim.count)),
    element("td", { className: "figure" }, seconds(victim.longest)),
    element("td", {}, victim.route),
    element("td", {}, to, element("span", { className: "note" }, ` ${percent(total / victim.total)}`)));
}
