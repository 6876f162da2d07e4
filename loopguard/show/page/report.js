// The page: its parts in their order, drawn anew whenever something else is chosen.

function sentence(page) {
  const stalls = page.stalls.filter((stall) => stall.cause !== "not_scheduled");
  const strong = (words) => element("strong", {}, words);
  if (!stalls.length) return ["No code held an event loop", page.store.stalls.length ? " here." : "."];
  const culprits = culpritsOf(stalls);
  const worst = culprits.reduce((most, culprit) => (culprit.seconds > most.seconds ? culprit : most));
  const processes = new Set(stalls.map((stall) => stall.process)).size;
  const from = stalls.reduce((least, stall) => Math.min(least, stall.at), Infinity);
  const to = stalls.reduce((most, stall) => Math.max(most, stall.at + stall.duration), 0);
  const said = [
    "Held ", strong(seconds(sum(stalls, held))), " in ", strong(number(stalls.length, "stall")), `, ${number(processes, "process")}, `,
    timespan(from, to),
  ];
  if (!worst.worst.culprit) return [...said, "."];
  const open = element("button", { id: "worst", type: "button", className: "link" }, worst.name);
  open.addEventListener("click", () => page.open(worst.worst));
  return [...said, "; worst: ", open, ", ", element("span", { className: "place" }, worst.place), "."];
}

function notes(data) {
  const { total, left_out: leftOut, payload } = data;
  const found = [];
  if (!total) return found; // a page that goes on
  if (data.fatal) found.push(data.fatal);
  if (total.stalls > payload.stalls.length) {
    found.push(`Of ${number(total.stalls, "stall")} (${seconds(total.seconds)} in all) these are the longest ${grouped.format(payload.stalls.length)}.`);
  }
  if (leftOut.lines) {
    const reasons = leftOut.reasons.map((each) => `${each.file}: ${each.lines} ${each.reason}`);
    found.push(`${number(leftOut.lines, "line")} could not be read (${reasons.slice(0, 5).join("; ")}).`);
  }
  return found.map((words) => element("p", { className: "note" }, words));
}

function start(data, ...before) {
  const store = createStore();
  take(store, data.payload);
  const page = { store, state: stateFrom(location.hash), traceUrl: data.trace_url, stalls: [] };
  const lead = element("h1");
  const parts = [filterBar(page), timeline(page), culpritTable(page), victimTable(page), icicle(page)];
  const [filters, ...sections] = parts;
  page.draw = () => keepingFocus(() => {
    page.stalls = store.stalls.filter((stall) => chosen(stall, page.state));
    lead.replaceChildren(...sentence(page));
    for (const part of parts) part.draw();
  });
  page.change = (changes) => {
    Object.assign(page.state, changes);
    history.pushState(null, "", hashOf(page.state));
    page.draw();
  };
  page.open = (stall) => {
    page.change({ open: stall.fingerprint, stall: stall.id });
    const row = document.getElementById(`open-${stall.fingerprint}`);
    row?.scrollIntoView({ block: "center" });
    row?.focus({ preventScroll: true });
  };
  addEventListener("popstate", () => {
    Object.assign(page.state, stateFrom(location.hash));
    page.draw();
  });
  const over = element("p", { className: "over" }, data.title || "Blocked event loops",
    element("span", {}, `written ${day(data.written_at)} ${clock(data.written_at)}`));
  const main = document.getElementById("page");
  main.replaceChildren(element("header", {}, over, lead, ...notes(data)), ...before, filters.node, ...sections.map((part) => part.node));
  page.draw();
  main.dataset.ready = "true";
  return page;
}
