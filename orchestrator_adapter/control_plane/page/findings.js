// What an engineer must know first: sentences made from a document. Pure functions.

import {ago, count, duration, list, percent, plural, time, whole} from "./format.js";

export const ENDED_BADLY = new Set(["errored", "panicked", "aborted", "straggler"]);
const ENDED = new Set([...ENDED_BADLY, "ok"]);
const RECENT_S = 600; // a restart that is older is history

/**
 * Findings, the most severe first: {level, key, text}. level is "bad", "warn", "info" or "ok". key changes only when the
 * meaning does, and not with every figure; the screen reader's sentence depends on it.
 */
export function findings(doc, now) {
  const found = [
    ...stalled(doc),
    ...lost(doc),
    ...ended(doc),
    ...restarting(doc),
    ...breakers(doc),
    ...bottlenecks(doc),
    ...paused(doc),
  ];
  found.push(...unexplained(doc, found));
  if (doc.shutting_down !== null) found.splice(severe(found), 0, draining(doc));
  found.push(...recentFailures(doc, now, found));
  if (!found.some((each) => each.level !== "info")) found.unshift(allWell(doc));
  return found;
}

function severe(found) {
  return found.filter((each) => each.level === "bad").length;
}

function stalled(doc) {
  const {loop} = doc;
  if (!loop.stalled) return [];
  const by = loop.blocked_by ? `Operator ${loop.blocked_by} blocks it.` : "Which operator blocks it is not known.";
  const text = `The event loop has not answered for ${duration(loop.silent_s)}, so no operator can work. ${by}`;
  return [{level: "bad", key: `stalled ${loop.blocked_by}`, text, operator: loop.blocked_by}];
}

function lost({ledger}) {
  if (ledger.balanced) return [];
  const text =
    ledger.lost > 0
      ? `${plural(ledger.lost, "item")} cannot be accounted for: the ledger does not balance.`
      : `The ledger does not balance: it has ${plural(-ledger.lost, "item")} more than came in.`;
  return [{level: "bad", key: "unbalanced", text}];
}

function ended(doc) {
  return doc.operators
    .filter((each) => ENDED_BADLY.has(each.state))
    .map((each) => ({
      level: "bad",
      key: `${each.state} ${each.name}`,
      operator: each.name,
      text: `${each.name} has ended (${each.state}) and does not restart${because(each)}`,
    }));
}

function restarting(doc) {
  return doc.operators
    .filter((each) => each.state === "restarting")
    .map((each) => ({
      level: "bad",
      key: `restarting ${each.name}`,
      operator: each.name,
      text: `${each.name} has failed and restarts ${restartIn(each)}${because(each)}`,
    }));
}

export function restartIn(operator) {
  return operator.restart_in_s === null || operator.restart_in_s < 0.5 ? "now" : `in ${whole(operator.restart_in_s)}`;
}

function because(operator) {
  const error = operator.last_error;
  return error === null ? "." : `: ${error.kind}${error.message ? `: ${short(error.message)}` : ""}`;
}

export function short(text, most = 160) {
  const line = text.split("\n", 1)[0];
  return line.length > most ? `${line.slice(0, most - 1)}…` : line;
}

function breakers(doc) {
  return doc.breakers
    .filter((each) => each.state !== "closed")
    .map((each) => {
      const users = each.operators.length ? `${list(each.operators)} cannot call it` : "calls are rejected";
      const state =
        each.state === "half-open"
          ? `Circuit breaker ${each.name} is half-open: a probe decides whether calls are admitted again.`
          : `Circuit breaker ${each.name} is ${each.forced ? "forced " : ""}open${
              each.probe_in_s === null ? "" : ` (next probe in ${whole(each.probe_in_s)})`
            }: ${users}.`;
      return {level: "warn", key: `breaker ${each.name} ${each.state}`, text: state};
    });
}

function bottlenecks(doc) {
  return doc.bottlenecks.map((each, i) => ({
    level: "warn",
    key: `bottleneck ${each.operator}`,
    operator: each.operator,
    text:
      `${each.operator} is ${doc.bottlenecks.length === 1 ? "the" : i === 0 ? "the worst" : "also a"} bottleneck: ` +
      `${each.reason.replace(/\.?$/, ".")}`,
  }));
}

function paused(doc) {
  const names = doc.operators.filter((each) => each.state === "paused").map((each) => each.name);
  if (!names.length) return [];
  const text = `${list(names)} ${names.length === 1 ? "is" : "are"} paused by an action: nothing is ingested there.`;
  return [{level: "warn", key: `paused ${names}`, text}];
}

/** Reasons of the health that no other finding names. */
function unexplained(doc, found) {
  if (doc.health.status === "ok" || doc.health.status === "draining") return [];
  const told = found.map((each) => each.text).join(" ");
  const named = [...doc.operators, ...doc.breakers].map((each) => each.name).filter((name) => told.includes(name));
  const rest = doc.health.reasons.filter(
    (reason) => !named.some((name) => reason.includes(name)) && !(doc.loop.stalled && reason.includes("loop")),
  );
  const level = doc.health.status === "failing" ? "bad" : "warn";
  return rest.map((reason) => ({level, key: reason.replace(/[\d.,]+/g, "#"), text: sentence(reason)}));
}

function sentence(text) {
  return `${text.slice(0, 1).toUpperCase()}${text.slice(1).replace(/\.?$/, ".")}`;
}

function draining(doc) {
  const running = doc.operators.filter((each) => !ENDED.has(each.state)).length;
  const of = `${running} of ${plural(doc.operators.length, "operator")} still ${running === 1 ? "runs" : "run"}`;
  return {level: "info", key: "draining", text: `Draining (${doc.shutting_down}): ${of}.`, headline: true};
}

function recentFailures(doc, now, found) {
  const named = new Set(found.map((each) => each.operator));
  return failures(doc, now)
    .filter((each) => !named.has(each.name) || found.every((f) => f.operator !== each.name || f.level === "warn"))
    .filter((each) => now - each.last_error.at < RECENT_S)
    .map((each) => ({
      level: "info",
      key: `restarted ${each.name} ${each.budget.restarts}`,
      text: `${each.name} has failed and runs again since its restart ${ago(each.uptime_s)} (${each.last_error.kind}).`,
    }));
}

/** Operators that were restarted, the latest failure first. */
export function failures(doc) {
  return doc.operators
    .filter((each) => each.budget.restarts > 0 && each.last_error !== null && each.state === "running")
    .sort((a, b) => b.last_error.at - a.last_error.at);
}

function allWell(doc) {
  if (doc.operators.every((each) => each.state === "waiting")) {
    return {level: "info", key: "starting", text: "The run starts: no operator runs yet.", headline: true};
  }
  return {level: "ok", key: "well", text: "Everything keeps up.", headline: true};
}

/** The answers to the four questions: {question, answer, more, level}. */
export function answers(doc, now) {
  return [bottleneckAnswer(doc), failedAnswer(doc, now), lostAnswer(doc), latencyAnswer(doc)];
}

function bottleneckAnswer(doc) {
  const names = doc.bottlenecks.map((each) => each.operator);
  const question = names.length > 1 ? "Bottlenecks" : "Bottleneck";
  if (!names.length) return {question, answer: "none", more: "no operator holds the others up", level: "ok"};
  const more = `limits the run for ${percent(doc.bottlenecks[0].score)} of the last ${whole(doc.window_s)}`;
  return {question, answer: list(names), more, level: "warn", operator: names[0]};
}

function failedAnswer(doc, now) {
  const question = "Failed";
  const down = doc.operators.filter((each) => each.state === "restarting" || ENDED_BADLY.has(each.state));
  if (down.length) {
    const error = down[0].last_error;
    const more = error === null ? down[0].state : `${error.kind}, ${ago(now - error.at)}`;
    return {question, answer: list(down.map((each) => each.name)), more, level: "bad", operator: down[0].name};
  }
  const [last] = failures(doc);
  if (last === undefined) return {question, answer: "none", more: "no restart in this run", level: "ok"};
  const restarts = doc.operators.reduce((sum, each) => sum + each.budget.restarts, 0);
  const more = `${plural(restarts, "restart")} in this run; the last: ${last.name}, ${ago(now - last.last_error.at)}`;
  return {question, answer: "none now", more, level: "ok", operator: last.name};
}

function lostAnswer({ledger, operators, edges}) {
  const question = "Lost";
  if (!ledger.balanced) {
    const what = ledger.lost > 0 ? `${plural(ledger.lost, "item")}` : "ledger wrong";
    return {question, answer: what, more: "not accounted for", level: "bad", href: "#ledger"};
  }
  const letters = operators.reduce((sum, each) => sum + total(each.dead_letters), 0);
  const dropped = edges.reduce((sum, each) => sum + each.dropped, 0);
  const kept = [letters ? plural(letters, "dead letter") : "", dropped ? `${count(dropped)} dropped by policy` : ""];
  const more = kept.filter(Boolean).join(", ") || "the ledger balances";
  return {question, answer: "nothing", more, level: letters || dropped ? "info" : "ok", href: "#ledger"};
}

export function total(byKind) {
  return Object.values(byKind).reduce((sum, n) => sum + n, 0);
}

function latencyAnswer({latency, panels}) {
  const question = "Latency, p99";
  const late = panels.flatMap((panel) =>
    panel.rows.filter((row) => row.alarming).map((row) => `${panel.title}${row.name ? `: ${row.name}` : ""}`),
  );
  const before = latency.last_15_min === null ? "" : `15 min: ${duration(latency.last_15_min.p99_s)}`;
  const alarm = late.length ? `check ${list(late)}` : "";
  const more = [before, alarm].filter(Boolean).join("; ") || "nothing was measured";
  const answer = latency.now === null ? "no items now" : duration(latency.now.p99_s);
  return {question, answer, more, level: late.length ? "warn" : "info", href: late.length ? "#panels" : "#latency"};
}

/** The page while no document comes. */
export function disconnected(sinceMs, nowMs) {
  const silent = whole((nowMs - sinceMs) / 1000);
  return {
    level: "bad",
    key: "disconnected",
    text: `No answer from the control plane for ${silent}. The state of the run is not known.`,
    banner: `No answer from the control plane since ${time(sinceMs / 1000)}, trying again. The figures below are ${silent} old.`,
  };
}
