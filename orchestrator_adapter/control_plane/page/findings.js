// The short answers to the questions of who is paged. Pure functions.

import {ago, count, duration, list, percent, plural, time, whole} from "./format.js";

export const ENDED_BADLY = new Set(["errored", "panicked", "aborted", "straggler"]);

/** How severe the present state is: "bad", "warn", "info" or "ok". */
export function level(doc) {
  const failed = doc.operators.some((each) => isDown(each));
  if (doc.loop.stalled || !doc.ledger.balanced || doc.health.status === "failing" || failed) return "bad";
  if (doc.shutting_down !== null) return "info";
  return doc.conditions.length ? "warn" : "ok";
}

export function isDown(operator) {
  return operator.state === "restarting" || ENDED_BADLY.has(operator.state);
}

/** The operator that a condition names first, so that it can be selected. */
export function named(condition, doc) {
  const at = (each) => condition.indexOf(`'${each.name}'`);
  const found = doc.operators.filter((each) => at(each) >= 0).sort((a, b) => at(a) - at(b));
  return found[0]?.name ?? null;
}

/** A sentence without its figures: it changes only when the meaning does. */
export function meaning(sentence) {
  return sentence.replace(/[\d.,]+/g, "#");
}

export function restartIn(operator) {
  return operator.restart_in_s === null || operator.restart_in_s < 0.5 ? "now" : `in ${whole(operator.restart_in_s)}`;
}

/** {question, answer, more, level} and where it leads: operator, or href. */
export function answers(doc, now) {
  return [bottleneckAnswer(doc), failedAnswer(doc, now), lostAnswer(doc), latencyAnswer(doc)];
}

/** The operator that blocks the event loop now, or null. */
export function blocker(doc) {
  return doc.loop.stalled && doc.loop.blocked_by ? doc.loop.blocked_by : null;
}

function bottleneckAnswer(doc) {
  if (doc.loop.stalled) {
    const operator = blocker(doc);
    const more = operator === null ? "which operator blocks it is not known" : "it blocks the event loop";
    return {question: "Bottleneck", answer: operator ?? "the event loop", more, level: "bad", operator, current: true};
  }
  const names = doc.bottlenecks.map((each) => each.operator);
  const question = names.length > 1 ? "Bottlenecks" : "Bottleneck";
  if (!names.length) return {question, answer: "none", more: "no operator holds up the others", level: "ok"};
  const more = `limits the run for ${percent(doc.bottlenecks[0].score)} of the time`;
  return {question, answer: list(names), more, level: "warn", operator: names[0]};
}

function failedAnswer(doc, now) {
  const question = "Failed";
  const down = doc.operators.filter(isDown);
  if (down.length) {
    const error = down[0].last_error;
    const more = error === null ? down[0].state : `${error.kind}, ${ago(now - error.at)}`;
    return {question, answer: list(down.map((each) => each.name)), more, level: "bad", operator: down[0].name};
  }
  const open = doc.breakers.filter((each) => each.state !== "closed");
  if (open.length) {
    const answer = open.length === 1 ? `breaker ${open[0].name}` : plural(open.length, "breaker");
    const users = list(open.flatMap((each) => each.operators));
    const more = `${open[0].state}${users ? `; used by ${users}` : ""}`;
    return {question, answer, more, level: "warn", href: "#breakers"};
  }
  const [last] = doc.operators
    .filter((each) => each.budget.restarts > 0 && each.last_error !== null)
    .sort((a, b) => b.last_error.at - a.last_error.at);
  if (last === undefined) return {question, answer: "none", more: "no restart in this run", level: "ok"};
  const restarts = doc.operators.reduce((sum, each) => sum + each.budget.restarts, 0);
  const more = `${plural(restarts, "restart")} so far, last ${last.name} ${ago(now - last.last_error.at)} (${last.last_error.kind})`;
  return {question, answer: "none now", more, level: "ok", operator: last.name};
}

function lostAnswer({ledger, operators, edges}) {
  const question = "Lost";
  if (!ledger.balanced) {
    const what = ledger.lost > 0 ? plural(ledger.lost, "item") : `${plural(-ledger.lost, "item")} too many`;
    return {question, answer: what, more: "the ledger does not balance", level: "bad", href: "#ledger"};
  }
  const letters = operators.reduce((sum, each) => sum + total(each.dead_letters), 0);
  const dropped = edges.reduce((sum, each) => sum + each.dropped, 0);
  const unread = operators.reduce((sum, each) => sum + (each.counters.kernel_drops ?? 0), 0);
  const kept = [letters ? plural(letters, "dead letter") : "", dropped ? `${count(dropped)} dropped by policy` : ""];
  const more = `every item is accounted for${kept.filter(Boolean).map((each) => `; ${each}`).join("")}`;
  if (unread) {
    return {question, answer: plural(unread, "datagram"), more: `dropped by the kernel before a source read them; ${more}`, level: "bad", href: "#ledger"};
  }
  return {question, answer: "nothing", more, level: "ok", href: "#ledger"};
}

export function total(byKind) {
  return Object.values(byKind).reduce((sum, n) => sum + n, 0);
}

function latencyAnswer({latency, panels}) {
  const question = "In time: p99 from ingest to sink";
  const late = panels.flatMap((panel) =>
    panel.rows.filter((row) => row.alarming).map((row) => `${panel.title}${row.name ? ` (${row.name})` : ""}`),
  );
  const before = latency.last_15_min === null ? "" : `${duration(latency.last_15_min.p99_s)} over 15 min`;
  const more = [before, late.length ? `check: ${list(late)}` : ""].filter(Boolean).join("; ");
  const answer = latency.now === null ? "no items now" : duration(latency.now.p99_s);
  const href = late.length ? "#panels" : "#latency";
  return {question, answer, more: more || "nothing was measured yet", level: late.length ? "warn" : "info", href};
}

/** The sentence and the banner while no document comes. */
export function disconnected(sinceMs, nowMs) {
  const silent = whole((nowMs - sinceMs) / 1000);
  return {
    headline: `No answer from the control plane for ${silent}. The state of the run is not known.`,
    banner: `No answer from the control plane since ${time(sinceMs / 1000)}, trying again. The figures below are ${silent} old.`,
  };
}
