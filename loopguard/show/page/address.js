// What is chosen stands in the address, so that a link shows the same.

function freshState() {
  return {
    causes: new Set(), route: null, process: null, from: null, to: null,
    sort: "seconds", ascending: false, open: null, stall: null, library: false,
  };
}

const MILLISECONDS = (unix) => new Date(unix * 1000).toISOString();

function stateFrom(hash) {
  const state = freshState();
  const asked = new URLSearchParams(hash.replace(/^#/, ""));
  state.causes = new Set((asked.get("cause") || "").split(",").filter((cause) => CAUSES.includes(cause)));
  state.route = asked.get("route");
  state.process = asked.get("process");
  const [from, to] = ["from", "to"].map((name) => Date.parse(asked.get(name) || "") / 1000);
  if (Number.isFinite(from) && Number.isFinite(to) && from <= to) Object.assign(state, { from, to });
  const [sort, direction] = (asked.get("sort") || "").split(" ");
  if (SORTS.includes(sort)) Object.assign(state, { sort, ascending: direction === "up" });
  state.open = asked.get("open");
  state.stall = asked.get("stall");
  state.library = asked.get("library") === "1";
  return state;
}

function hashOf(state) {
  const address = new URLSearchParams();
  if (state.causes.size) address.set("cause", [...state.causes].join(","));
  if (state.route !== null) address.set("route", state.route);
  if (state.process !== null) address.set("process", state.process);
  if (state.from !== null) {
    address.set("from", MILLISECONDS(state.from));
    address.set("to", MILLISECONDS(state.to));
  }
  if (state.sort !== "seconds" || state.ascending) address.set("sort", state.ascending ? `${state.sort} up` : state.sort);
  if (state.open !== null) address.set("open", state.open);
  if (state.stall !== null) address.set("stall", state.stall);
  if (state.library) address.set("library", "1");
  return `#${address}`;
}

const CAUSES = [
  "blocking_call", "lock", "gil_wait", "cpu", "gil_hold", "gc", "import", "congestion", "not_scheduled", "unknown",
];
const SORTS = ["seconds", "count", "longest", "delayed", "cause", "name"];
