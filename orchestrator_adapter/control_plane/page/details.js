// The panel of one operator or edge.

import {ActionButton} from "./actions.js";
import {total} from "./findings.js";
import {ago, bytes, count, duration, moment, percent, plural, rate, whole} from "./format.js";
import {Bar, pressure, shareText, stateName, STATES, stateWithGlyph} from "./topology.js";
import {html, useEffect, useRef, useState} from "./vendor/htm-preact.js";

export function Details({doc, now, selected, onClose, onSelect, act}) {
  const heading = useRef(null);
  useEffect(() => {
    heading.current?.focus({preventScroll: true});
  }, [selected]);
  const operator = doc.operators.find((each) => `operator=${each.name}` === selected);
  const edge = doc.edges.find((each) => `edge=${each.id}` === selected);
  const name = operator?.name ?? edge?.id ?? selected.replace(/^(operator|edge)=/, "");
  const body =
    operator !== undefined
      ? html`<${OperatorDetails} key=${name} doc=${doc} now=${now} operator=${operator} onSelect=${onSelect} act=${act} />`
      : edge !== undefined
        ? html`<${EdgeDetails} edge=${edge} onSelect=${onSelect} />`
        : html`<p>This run has no such operator or edge.</p>`;
  return html`<aside class="details" aria-labelledby="details-title" data-details=${name}>
    <header><h2 id="details-title" ref=${heading} tabindex="-1">${name}</h2>
      <button class="close" onClick=${onClose} aria-label="Close the details (Escape)">✕</button></header>${body}</aside>`;
}

function Figures({rows}) {
  return html`<dl class="facts">${rows.filter(Boolean).map(([what, value]) => html`<div key=${what}><dt>${what}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function OperatorDetails({doc, now, operator, onSelect, act}) {
  const {budget, latency, shares, last_error: error} = operator;
  const mark = doc.bottlenecks.find((each) => each.operator === operator.name);
  const letters = total(operator.dead_letters);
  const ends = [...doc.edges.filter((each) => each.downstream === operator.name), ...doc.edges.filter((each) => each.upstream === operator.name)];
  return html`
    <p class="word">${stateWithGlyph(operator)} · ${operator.role}${operator.instance > 1 ? ` · instance ${operator.instance}` : ""}</p>
    ${mark && html`<p class="callout warn"><b>Bottleneck.</b> ${mark.reason}</p>`}
    ${error && html`<p class=${operator.state === "running" ? "callout" : "callout bad"}><b>Last error, ${ago(now - error.at)}:</b> ${error.kind}: <span class="message">${error.message}</span> <span class="quiet">${moment(error.at)}</span></p>`}
    <svg class="bar" viewBox="0 0 300 14" preserveAspectRatio="none" role="img" aria-label=${shareText(shares, operator.role)}><${Bar} shares=${shares} source=${operator.role === "source"} x=${0} y=${0} width=${300} height=${14} /></svg>
    <ul class="legend">${STATES.map((each) => html`<li key=${each}><svg width="14" height="10" aria-hidden="true"><rect width="14" height="10" class=${`fill-${operator.role === "source" && each === "busy" ? "feed" : each}`} /></svg> ${stateName(each, operator.role)} ${percent(shares[each])}</li>`)}</ul>
    ${doc.actions && operator.role === "source" && html`<p class="buttons">
      <${ActionButton} act=${act} path=${`actions/pause?source=${encodeURIComponent(operator.name)}`} what=${`${operator.name} ingests nothing more until it is resumed. The rest of the run goes on.`}>Pause</${ActionButton}>
      <${ActionButton} act=${act} path=${`actions/resume?source=${encodeURIComponent(operator.name)}`} what=${`${operator.name} ingests again.`}>Resume</${ActionButton}></p>`}
    <${Figures} rows=${[
      ["Rate in", `${rate(operator.rate_in)} items/s`],
      operator.role !== "sink" && ["Rate out", `${rate(operator.rate_out)} items/s`],
      ["Consumed", plural(operator.consumed, "item")],
      operator.role !== "sink" && ["Emitted", plural(operator.emitted, "item")],
      ["Last item", operator.last_item_age_s === null ? "none yet" : ago(operator.last_item_age_s)],
      ["Latency of a batch", latency === null ? "not measured" : `p50 ${duration(latency.p50_s)}, p99 ${duration(latency.p99_s)}`],
      ["Running for", operator.state === "running" ? whole(operator.uptime_s) : "does not run"],
      ["Restarts", restarts(budget)],
      ["Restart policy", operator.policy],
      operator.note && ["Why", operator.note],
      operator.breakers.length > 0 && ["Breakers", operator.breakers.join(", ")],
    ]} />
    ${operator.url && html`<p><a href=${operator.url} target="_blank" rel="noreferrer">Task run in Prefect ↗</a></p>`}
    <h3>Edges</h3>
    <ul class="plain">${ends.map((each) => html`<li key=${each.id}><button class="link" onClick=${() => onSelect(`edge=${each.id}`)}>${each.id}</button> <span class="quiet">${rate(each.rate)}/s, ${percent(each.fill)} full</span></li>`)}</ul>
    <${Counts} title="Errors by kind" counts=${operator.errors} />
    <${Counts} title="Its own figures" counts=${operator.counters} />
    <h3>Dead letters</h3>
    <${DeadLetters} operator=${operator.name} letters=${letters} now=${now} />`;
}

function restarts({left, of, window_s: windowS, restarts: n}) {
  if (left === null) return `${count(n)}; no limit`;
  return `${count(n)}; ${count(left)} of ${count(of)} left${windowS === null ? "" : ` within ${whole(windowS)}`}`;
}

function Counts({title, counts}) {
  const rows = Object.entries(counts);
  if (!rows.length) return null;
  return html`<h3>${title}</h3><${Figures} rows=${rows.map(([what, n]) => [what, count(n)])} />`;
}

function EdgeDetails({edge, onSelect}) {
  const held = pressure(edge);
  const text = {none: "It holds nothing up.", some: "It held its writer up for some of the time.", high: "It holds its writer up."}[held];
  return html`
    <p class=${held === "none" ? "word" : "callout warn"}>${text} Under pressure for ${percent(edge.pressure)} of the time.</p>
    <${Figures} rows=${[
      ["In it now", `${count(edge.occupancy)} of ${plural(edge.capacity, "item")} (${percent(edge.fill)})`],
      ["Most so far", plural(edge.high_water_mark, "item")],
      ["Offered, waiting for space", plural(edge.outbox, "item")],
      ["Rate", `${rate(edge.rate)} items/s`],
      ["Sent", plural(edge.sent, "item")],
      ["Received", plural(edge.received, "item")],
      ["Wait in it", edge.wait === null ? "not measured" : `p50 ${duration(edge.wait.p50_s)}, p99 ${duration(edge.wait.p99_s)}`],
      ["Dropped by its policy", plural(edge.dropped, "item")],
      edge.spilled > 0 && ["On disk", `${plural(edge.spilled, "item")}, ${bytes(edge.spilled_bytes)}`],
      ["Flow policy", edge.policy],
    ]} />
    <h3>Operators</h3>
    <ul class="plain">${[["From", edge.upstream], ["To", edge.downstream]].map(([what, name]) => html`<li key=${what}>${what} <button class="link" onClick=${() => onSelect(`operator=${name}`)}>${name}</button></li>`)}</ul>`;
}

/** The last 20. They are read again when their number changes. */
function DeadLetters({operator, letters, now}) {
  const [page, setPage] = useState(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    if (letters === 0) return undefined;
    const stop = new AbortController();
    const timer = setTimeout(
      () => {
        fetch(`dead-letters?operator=${encodeURIComponent(operator)}&limit=20`, {signal: stop.signal})
          .then(async (response) => {
            if (!response.ok) throw new Error(`the control plane answered ${response.status}`);
            setPage(await response.json());
            setProblem("");
          })
          .catch((error) => {
            if (!stop.signal.aborted) setProblem(error.message);
          });
      },
      page === null ? 0 : 1_000,
    );
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [operator, letters]);
  if (letters === 0) return html`<p class="quiet">None.</p>`;
  if (problem && page === null) return html`<p class="bad">They cannot be read: ${problem}.</p>`;
  if (page === null) return html`<p class="quiet">Reading …</p>`;
  return html`<p class="quiet">The newest ${count(page.letters.length)} of ${count(page.total)}. The dead-letter file has all of them.</p>
    <ol class="letters">${page.letters.map((each) => html`<li key=${each.number} data-letter=${each.number}>
      <b>${each.kind}</b>: <span class="message">${each.message}</span>
      <span class="quiet"><time title=${moment(each.at)}>${ago(now - each.at)}</time>, ${plural(each.attempts, "attempt")}, ${each.payload}</span></li>`)}</ol>`;
}
