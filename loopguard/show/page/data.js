// The stalls as objects, from the rows that they are written in; and what is reckoned from them.

function createStore() {
  return { stalls: [], ids: new Map(), processes: [], processIndex: new Map() };
}

// Takes what is new. A stall of an id that is known already takes the place of the earlier.
function take(store, payload) {
  const text = (index) => payload.texts[index];
  const frames = payload.frames.map(([file, line, name, module, code, library]) => ({
    file: text(file), line, function: text(name), module: text(module), code: text(code), library: library === 1,
  }));
  const frame = (index) => (index < 0 ? null : frames[index]);
  const nodes = payload.nodes;
  const stacks = new Map([[-1, []]]);
  const stack = (node) => {
    if (!stacks.has(node)) stacks.set(node, [...stack(nodes[2 * node]), frames[nodes[2 * node + 1]]]);
    return stacks.get(node);
  };
  const processes = payload.processes.map((process) => takeProcess(store, process));
  for (const row of payload.stalls) {
    const [id, at, duration, cause, fingerprint, process, culprit, call, waitedOn, node, route, trace, cpu, gc, task,
      coroutine, advice, delayed, samples, confidence, rare] = row;
    const more = rare || {};
    const stall = {
      id, at: payload.base + at, duration, cause: text(cause), fingerprint: text(fingerprint), process: processes[process], culprit: frame(culprit), call: text(call),
      waitedOn: text(waitedOn), stack: stack(node), route: text(route), trace: trace || null, cpu, gc, task: text(task), coroutine: text(coroutine), advice: text(advice),
      delayed, samples, confidence,
      rare: {
        ongoing: more.ongoing === true,
        background: more.background === true,
        holder: more.holder && { thread: text(more.holder[0]), culprit: frame(more.holder[1]), stack: stack(more.holder[2]) },
        phases: more.phases?.map(([culprit, share]) => ({ name: place(frame(culprit)), share })),
        contributors: more.contributors?.map(([name, share]) => ({ name: text(name), share })),
        ...takeVictims(more, text),
      },
    };
    const known = store.ids.get(id);
    if (known === undefined) {
      store.ids.set(id, store.stalls.length);
      store.stalls.push(stall);
    } else {
      store.stalls[known] = stall;
    }
  }
}

// The requests that had to wait, each, or where there are too many of them by route.
function takeVictims(more, text) {
  const victims = (more.victims || []).map(([route, delay, flags, trace]) => (
    { route: text(route), delay: delay / 1000, exact: (flags & 1) === 1, queued: (flags & 2) === 2, trace: trace || null }));
  const routes = victims.map(({ route, delay }) => ({ route, count: 1, total: delay, longest: delay }));
  const rows = more.routes || [];
  for (let at = 0; at < rows.length; at += 4) {
    routes.push({ route: text(rows[at]), count: rows[at + 1], total: rows[at + 2] / 1000, longest: rows[at + 3] / 1000 });
  }
  return { victims, routes };
}

function takeProcess(store, process) {
  const key = `${process.host} ${process.instance} ${process.pid}`;
  const known = store.processIndex.get(key);
  if (known) return Object.assign(known, process);
  const short = process.instance.length > 20 ? process.instance.slice(0, 8) : process.instance;
  const taken = { ...process, key, name: [process.host, short].filter(Boolean).join(" · ") || "a process" };
  store.processIndex.set(key, taken);
  store.processes.push(taken);
  return taken;
}

// Whether a stall is among what is chosen; `but` names one part of the choice that does not count.
function chosen(stall, state, but) {
  return (but === "causes" || !state.causes.size || state.causes.has(stall.cause))
    && (but === "route" || state.route === null || stall.route === state.route)
    && (but === "process" || state.process === null || stall.process.key === state.process)
    && (but === "time" || state.from === null || (stall.at + stall.duration >= state.from && stall.at <= state.to));
}

// Seconds for which code held the loop: none where the system did not run the process.
function held(stall) {
  return stall.cause === "not_scheduled" ? 0 : stall.duration;
}

function sum(items, value) {
  return items.reduce((total, item) => total + value(item), 0);
}

function byKey(items, key) {
  const groups = new Map();
  for (const item of items) {
    const found = key(item);
    if (groups.has(found)) groups.get(found).push(item);
    else groups.set(found, [item]);
  }
  return groups;
}

function commonest(items, key) {
  const groups = [...byKey(items, key)];
  return groups.reduce((most, group) => (group[1].length > most[1].length ? group : most))[0];
}

function culpritsOf(stalls) {
  return [...byKey(stalls, (stall) => stall.fingerprint)].map(([fingerprint, group]) => {
    const worst = group.reduce((most, stall) => (stall.duration > most.duration ? stall : most));
    const known = group.filter((stall) => stall.delayed !== null);
    return {
      fingerprint, worst, stalls: group, count: group.length, longest: worst.duration,
      seconds: sum(group, (stall) => stall.duration),
      delayed: known.length ? sum(known, (stall) => stall.delayed) : null,
      cause: commonest(group, (stall) => stall.cause),
      name: blamed(worst), place: worst.culprit ? place(worst.culprit) : "",
    };
  });
}

function victimsOf(stalls) {
  const victims = new Map();
  for (const stall of stalls) {
    for (const each of stall.rare.routes) {
      const victim = victims.get(each.route) || { route: each.route, count: 0, total: 0, longest: 0, by: new Map() };
      victim.count += each.count;
      victim.total += each.total;
      victim.longest = Math.max(victim.longest, each.longest);
      const by = victim.by.get(stall.fingerprint) || { stall, total: 0 };
      by.total += each.total;
      victim.by.set(stall.fingerprint, by);
      victims.set(each.route, victim);
    }
  }
  return [...victims.values()].sort((a, b) => b.total - a.total);
}

// The tree of blocked time. Runs of library frames are one node, unless they are asked for.
function treeOf(stalls, withLibrary) {
  const root = { name: "all", seconds: sum(stalls, held), children: new Map(), parent: null, depth: 0, library: true };
  for (const [stack, group] of byKey(stalls, (stall) => stall.stack)) {
    const blocked = sum(group, held);
    let node = root;
    for (const step of stack.length ? steps(stack, withLibrary) : unseen(group[0])) {
      if (!node.children.has(step.key)) {
        node.children.set(step.key, { ...step, seconds: 0, children: new Map(), parent: node, depth: node.depth + 1 });
      }
      node = node.children.get(step.key);
      node.seconds += blocked;
    }
  }
  return root;
}

function unseen(stall) {
  return [{ key: stall.cause, name: stall.cause, place: "no stack was seen", code: null, library: true }];
}

function steps(stack, withLibrary) {
  const found = [];
  for (const frame of stack) {
    const last = found[found.length - 1];
    if (frame.library && !withLibrary && last?.run) {
      last.run.push(frame);
    } else if (frame.library && !withLibrary) {
      found.push({ run: [frame], library: true });
    } else {
      found.push({
        key: `${frame.file}\n${frame.line}\n${frame.function}`, name: frame.function, place: place(frame), code: frame.code,
        library: frame.library,
      });
    }
  }
  return found.map((step) => (step.run ? folded(step.run) : step));
}

// Runs that end alike are one: which way led through the framework is of no interest here.
function folded(run) {
  const last = run[run.length - 1];
  const top = (last.module || last.file).split(".")[0];
  return { key: `run ${top}`, name: top, place: "library frames", code: null, library: true, folded: true };
}
