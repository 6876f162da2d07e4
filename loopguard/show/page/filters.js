// The bar of filters: causes, which are the legend too, route, process and time.

function filterBar(page) {
  const bar = element("div", { className: "filters", role: "group", "aria-label": "filters" });
  return { node: bar, draw: () => bar.replaceChildren(...filterParts(page)) };
}

function filterParts(page) {
  const { state, store } = page;
  const parts = [element("div", { className: "chips" }, causeChips(page))];
  const choices = element("div", { className: "choices" });
  const routes = [...new Set(store.stalls.map((stall) => stall.route).filter(Boolean))].sort();
  if (routes.length > 1 || state.route !== null) {
    choices.append(choice(page, "route", "Route", routes.map((route) => [route, route])));
  }
  if (store.processes.length > 1 || state.process !== null) {
    choices.append(choice(page, "process", "Process", store.processes.map((process) => [process.key, process.name])));
  }
  if (state.from !== null) choices.append(chosenTime(page));
  if (isFiltered(state)) {
    const clear = element("button", { id: "clear", type: "button" }, "Clear filters");
    clear.addEventListener("click", () => page.change({
      causes: new Set(), route: null, process: null, from: null, to: null,
    }));
    choices.append(clear);
  }
  if (choices.childElementCount) parts.push(choices);
  return parts;
}

function isFiltered(state) {
  return state.causes.size > 0 || state.route !== null || state.process !== null || state.from !== null;
}

function causeChips(page) {
  const { state, store } = page;
  const groups = byKey(store.stalls.filter((stall) => chosen(stall, state, "causes")), (stall) => stall.cause);
  const present = new Set(store.stalls.map((stall) => stall.cause));
  return CAUSES.filter((cause) => present.has(cause) || state.causes.has(cause)).map((cause) => {
    const pressed = state.causes.has(cause);
    const chip = element(
      "button", { id: `cause-${cause}`, type: "button", className: "chip", "aria-pressed": pressed },
      swatch(cause), cause, element("span", { className: "figure" }, seconds(sum(groups.get(cause) || [], (stall) => stall.duration))),
    );
    chip.addEventListener("click", () => {
      const causes = new Set(state.causes);
      if (!causes.delete(cause)) causes.add(cause);
      page.change({ causes });
    });
    return chip;
  });
}

function choice(page, name, label, options) {
  const select = element("select", { id: `choose-${name}` }, element("option", { value: "" }, "all"));
  const known = options.some(([value]) => value === page.state[name]);
  const all = known || page.state[name] === null ? options : [...options, [page.state[name], page.state[name]]];
  select.append(...all.map(([value, words]) => element("option", { value }, words)));
  select.value = page.state[name] ?? "";
  select.addEventListener("change", () => page.change({ [name]: select.value || null }));
  return element("label", { className: "choice" }, label, select);
}

function chosenTime(page) {
  const { from, to } = page.state;
  const fine = to - from < 60 ? 1 : 0;
  const words = `${clock(from, fine)} to ${clock(to, fine)}`;
  const button = element("button", { id: "any-time", type: "button", "aria-label": `${words}, remove this filter` }, words, " ×");
  button.addEventListener("click", () => page.change({ from: null, to: null }));
  return button;
}
