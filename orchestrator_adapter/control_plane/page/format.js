// Numbers, durations and times as text. Pure functions.

const UNKNOWN = "–";
const GROUPED = new Intl.NumberFormat("en-US", {maximumFractionDigits: 0});

/** 12345 -> "12,345". */
export function count(n) {
  return n === null || n === undefined ? UNKNOWN : GROUPED.format(n);
}

/** Items per second, in few characters: "0", "0.4", "412", "12.3k". */
export function rate(n) {
  if (n === null || n === undefined) return UNKNOWN;
  if (n === 0) return "0";
  if (n < 0.05) return "<0.1";
  if (n < 9.95) return n.toFixed(1);
  if (n < 9_999.5) return String(Math.round(n));
  if (n < 999_500) return `${(n / 1_000).toFixed(n < 99_950 ? 1 : 0)}k`;
  return `${(n / 1_000_000).toFixed(1)}M`;
}

/** A share from 0 to 1 as "96 %", rounded as in the headline. What is not nothing is never shown as 0 %. */
export function percent(share) {
  if (share === null || share === undefined) return UNKNOWN;
  if (share > 0 && share < 0.005) return "<1 %";
  return `${Math.round(share * 100)} %`;
}

/** A duration in seconds: "0.2 ms", "34 ms", "1.2 s", "4 min 3 s", "2 h 5 min", "3 d 4 h". */
export function duration(s) {
  if (s === null || s === undefined) return UNKNOWN;
  if (s === 0) return "0 s";
  if (s < 0.00995) return `${(s * 1000).toFixed(1)} ms`;
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  return whole(s);
}

/** A duration in whole seconds, for ages and countdowns. */
export function whole(s) {
  if (s === null || s === undefined) return UNKNOWN;
  const all = Math.max(0, Math.round(s));
  if (all < 60) return `${all} s`;
  if (all < 3_600) return parts(Math.floor(all / 60), "min", all % 60, "s");
  if (all < 86_400) return parts(Math.floor(all / 3_600), "h", Math.floor((all % 3_600) / 60), "min");
  return parts(Math.floor(all / 86_400), "d", Math.floor((all % 86_400) / 3_600), "h");
}

function parts(great, greatUnit, small, smallUnit) {
  return small ? `${great} ${greatUnit} ${small} ${smallUnit}` : `${great} ${greatUnit}`;
}

/** How long ago: "now", "12 s ago". */
export function ago(s) {
  return s < 1 ? "now" : `${whole(s)} ago`;
}

/** The time of day in UTC: "02:03:04 UTC". */
export function time(at) {
  return `${new Date(at * 1000).toISOString().slice(11, 19)} UTC`;
}

/** Date and time in UTC: "2026-01-31 02:03:04 UTC". */
export function moment(at) {
  return `${new Date(at * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

export function bytes(n) {
  if (n === null || n === undefined) return UNKNOWN;
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let value = n;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** "1 item", "2 items". */
export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** "a", "a and b", "a, b and c", and at most `most` of them: "a, b and 4 more". */
export function list(names, most = 3) {
  const shown = names.length > most ? [...names.slice(0, most - 1), `${names.length - most + 1} more`] : names;
  return shown.length < 2 ? shown.join("") : `${shown.slice(0, -1).join(", ")} and ${shown[shown.length - 1]}`;
}
