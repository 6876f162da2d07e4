// How figures, moments and places are worded: as in the text report.

const grouped = new Intl.NumberFormat("en-US");
const oneDecimal = new Intl.NumberFormat("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

function seconds(value) {
  if (value < 0.9995) return `${(value * 1000).toFixed(0)} ms`;
  return value < 59.9995 ? `${value.toFixed(3)} s` : `${oneDecimal.format(value)} s`;
}

function number(count, noun) {
  const plural = noun.endsWith("s") ? `${noun}es` : `${noun}s`;
  return `${grouped.format(count)} ${count === 1 ? noun : plural}`;
}

function percent(share) {
  return `${(share * 100).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`;
}

function two(value) {
  return String(value).padStart(2, "0");
}

function clock(unix, fine = 0) {
  const time = new Date(unix * 1000);
  const words = `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
  return fine ? `${words}.${String(time.getMilliseconds()).padStart(3, "0").slice(0, fine)}` : words;
}

function day(unix) {
  const time = new Date(unix * 1000);
  return `${time.getFullYear()}-${two(time.getMonth() + 1)}-${two(time.getDate())}`;
}

function timespan(from, to, fine = 0) {
  const end = day(from) === day(to) ? clock(to, fine) : `${day(to)} ${clock(to, fine)}`;
  return `${day(from)} ${clock(from, fine)} to ${end}`;
}

function zone() {
  const minutes = -new Date().getTimezoneOffset();
  if (!minutes) return "UTC";
  const size = Math.abs(minutes);
  return `UTC${minutes < 0 ? "−" : "+"}${two(Math.floor(size / 60))}:${two(size % 60)}`;
}

function place(frame) {
  return frame.line === null ? frame.file : `${frame.file}:${frame.line}`;
}

function blamed(stall) {
  if (stall.culprit) return stall.culprit.function;
  if (stall.rare.contributors) return "many callbacks";
  return stall.cause === "not_scheduled" ? "the system" : "no line could be seen";
}
