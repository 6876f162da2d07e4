// Everything about one stall: what ran, what it waited on, the stack, who had to wait.

function detail(page, culprit) {
  const stall = culprit.stalls.find((each) => each.id === page.state.stall) || culprit.worst;
  const left = element("div", { className: "facts" }, codeOf(stall), adviceOf(stall), factList(page, stall), sharesOf(stall));
  const right = element("div", { className: "evidence" }, stackOf(page, stall), holderOf(stall));
  return element("div", { className: "detail" },
    element("div", { className: "columns" }, left, right),
    element("div", { className: "columns" }, occurrences(page, culprit, stall), victimList(page, stall)));
}

function heading(words, note) {
  return element("h3", {}, words, note ? element("span", { className: "note" }, ` ${note}`) : null);
}

function codeOf(stall) {
  if (!stall.culprit) return null;
  return element("figure", {},
    element("figcaption", {}, element("code", {}, place(stall.culprit)), " in ", element("code", {}, stall.culprit.function)),
    stall.culprit.code ? element("pre", { tabIndex: 0, "aria-label": "code" }, element("code", {}, stall.culprit.code)) : null);
}

function adviceOf(stall) {
  return stall.advice && element("p", { className: "advice" }, stall.advice);
}

function factList(page, stall) {
  const facts = [
    ["held for", `${seconds(stall.duration)}${stall.rare.ongoing ? " so far: its end was not recorded" : ""}`],
    ["at", `${day(stall.at)} ${clock(stall.at, 3)}`],
    ["cause", [swatch(stall.cause), stall.cause]],
    ["call", code(stall.call)],
    ["waited on", code(stall.waitedOn)],
    ["route", stall.route && `${stall.route}${stall.rare.background ? " (background task)" : ""}`],
    ["trace", stall.trace && trace(page, stall.trace, "trace")],
    ["on a CPU", stall.cpu !== null && seconds(stall.cpu)],
    ["in the collector", stall.gc ? seconds(stall.gc) : null],
    ["task", code(stall.task)],
    ["coroutine", code(stall.coroutine)],
    ["process", `${stall.process.name}, pid ${stall.process.pid}`],
    ["seen in", stall.confidence !== null && `${percent(stall.confidence)} of ${number(stall.samples, "sample")}`],
  ];
  return element("dl", {}, facts.filter(([, fact]) => fact).map(([name, fact]) => (
    [element("dt", {}, name), element("dd", {}, ...[fact].flat())])));
}

function code(text) {
  return text && element("code", {}, text);
}

function trace(page, id, name) {
  const shown = element("code", { className: "trace" }, id);
  const parts = [shown, " ", copyButton(`copy-${name}`, id, `trace id ${id}`)];
  const address = page.traceUrl?.replace("{trace_id}", id);
  if (address) {
    parts.push(" ", element("a", { href: address, target: "_blank", rel: "noopener noreferrer", "aria-label": `open trace ${id}` }, "open"));
  }
  return parts;
}

function sharesOf(stall) {
  const shares = stall.rare.phases || stall.rare.contributors;
  if (!shares) return null;
  return [
    heading(stall.rare.phases ? "Blocked on several lines" : "Made up of many callbacks"),
    element("ul", { className: "shares" }, shares.slice(0, 12).map((each) => (
      element("li", {}, element("span", { className: "figure" }, percent(each.share)), element("code", {}, each.name))))),
  ];
}

function stackOf(page, stall) {
  if (!stall.stack.length) return heading("Stack", "none was seen");
  return [heading("Stack", "outermost first"), frameList(stall.stack, stall.culprit)];
}

function holderOf(stall) {
  const { holder } = stall.rare;
  if (!holder) return null;
  return [
    heading("In the way", `thread ${holder.thread}`),
    holder.stack.length ? frameList(holder.stack, holder.culprit)
      : element("p", {}, holder.culprit ? `${place(holder.culprit)} in ${holder.culprit.function}` : "its stack was not seen"),
  ];
}

function frameList(stack, culprit) {
  const list = element("ol", { className: "stack" });
  let run = [];
  const endRun = () => {
    if (run.length > 1) {
      list.append(element("li", { className: "library" }, element("details", {},
        element("summary", {}, `${run.length} library frames`), element("ol", { className: "stack" }, run.map(frameItem)))));
    } else {
      list.append(...run.map(frameItem));
    }
    run = [];
  };
  for (const frame of stack) {
    if (frame.library) {
      run.push(frame);
      continue;
    }
    endRun();
    const item = frameItem(frame);
    if (culprit && frame.file === culprit.file && frame.line === culprit.line) item.classList.add("culprit");
    list.append(item);
  }
  endRun();
  return list;
}

function frameItem(frame) {
  return element("li", { className: frame.library ? "library" : "" },
    element("code", { className: "frame-name" }, frame.function),
    element("span", { className: "frame-place" }, place(frame)),
    frame.code ? element("code", { className: "frame-code" }, frame.code) : null);
}

function occurrences(page, culprit, shown) {
  const longest = [...culprit.stalls].sort((a, b) => b.duration - a.duration).slice(0, 12);
  if (!longest.includes(shown)) longest.push(shown);
  const rows = longest.map((stall) => {
    const pick = element("button", {
      id: `stall-${stall.id}`, type: "button", className: "quiet", "aria-pressed": stall === shown,
    }, `${day(stall.at)} ${clock(stall.at, 1)}`);
    pick.addEventListener("click", () => page.change({ stall: stall.id }));
    return element("tr", { className: stall === shown ? "shown" : "" },
      element("td", {}, pick), element("td", { className: "figure" }, seconds(stall.duration)),
      element("td", {}, stall.route || "—"), element("td", {}, stall.process.name));
  });
  const note = culprit.count > longest.length ? `the longest ${longest.length} of ${grouped.format(culprit.count)}` : "";
  return element("div", {}, heading("Stalls", note), element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": "stalls" },
    element("table", { className: "small" },
      element("thead", {}, element("tr", {}, ["at", "held", "route", "process"].map((name, index) => (
        element("th", { scope: "col", className: index === 1 ? "figure" : "" }, name))))),
      element("tbody", {}, rows))));
}

function victimList(page, stall) {
  const { victims } = stall.rare;
  if (!victims.length) {
    const words = stall.delayed === null ? "not recorded" : stall.delayed ? `${grouped.format(stall.delayed)}, not listed here` : "none";
    return element("div", {}, heading("Requests that had to wait", words));
  }
  const rows = victims.slice(0, 20).map((victim, index) => element("tr", {},
    element("td", { className: "figure" }, `${victim.exact ? "" : "≤ "}${seconds(victim.delay)}`),
    element("td", {}, victim.route, victim.queued ? element("span", { className: "note" }, " in the socket") : null),
    element("td", {}, victim.trace ? trace(page, victim.trace, `victim-${index}`) : "—")));
  const more = Math.max(stall.delayed || 0, victims.length);
  return element("div", {}, heading("Requests that had to wait", more > rows.length ? `the longest ${rows.length} of ${grouped.format(more)}` : ""),
    element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": "requests that had to wait" },
      element("table", { className: "small" },
        element("thead", {}, element("tr", {}, ["waited", "route", "trace"].map((name, index) => (
          element("th", { scope: "col", className: index === 0 ? "figure" : "" }, name))))),
        element("tbody", {}, rows))));
}
