// The sections below the topology: ledger, latency, breakers, pools, the pipeline's own figures, timeline, process.

import {ActionButton} from "./actions.js";
import {ago, bytes, count, duration, list, moment, percent, plural, time, whole} from "./format.js";
import {stateWithGlyph} from "./topology.js";
import {html} from "./vendor/htm-preact.js";

export function Section({id, title, wide, children}) {
  return html`<section id=${id} class=${wide ? "card wide" : "card"} aria-labelledby=${`${id}-title`}>
    <h2 id=${`${id}-title`}>${title}</h2>${children}</section>`;
}

export function Ledger({ledger}) {
  const side = (terms) => terms.map(([term, items]) => html`<tr key=${term}><th scope="row">${term.replaceAll("_", " ")}</th><td>${count(items)}</td></tr>`);
  const sum = (terms) => terms.reduce((all, [, items]) => all + items, 0);
  const verdict = ledger.balanced
    ? "✓ It balances: both sides are equal."
    : ledger.lost > 0
      ? `✕ ${plural(ledger.lost, "item")} unaccounted for.`
      : `✕ ${plural(-ledger.lost, "item")} more on the right than came in.`;
  return html`<${Section} id="ledger" title="Ledger: what came in, and what became of it">
    <p class=${ledger.balanced ? "verdict ok" : "verdict bad"} data-balanced=${ledger.balanced ? "true" : "false"}>${verdict}</p>
    <div class="balance">
      <table><caption>Came in</caption><tbody>${side(ledger.left)}</tbody>
        <tfoot><tr><th scope="row">Sum</th><td>${count(sum(ledger.left))}</td></tr></tfoot></table>
      <span class="equals" aria-hidden="true">${ledger.balanced ? "=" : "≠"}</span>
      <table><caption>Became</caption><tbody>${side(ledger.right)}</tbody>
        <tfoot><tr><th scope="row">Sum</th><td>${count(sum(ledger.right))}</td></tr></tfoot></table>
    </div></${Section}>`;
}

export function Latency({latency, window_s: windowS}) {
  const line = (title, figures) => html`<tr><th scope="row">${title}</th>
    <td>${figures === null ? "–" : duration(figures.p50_s)}</td><td>${figures === null ? "–" : duration(figures.p99_s)}</td>
    <td>${figures === null ? "0" : count(figures.count)}</td></tr>`;
  return html`<${Section} id="latency" title="Latency: from ingest to the sink's acknowledgement">
    <table class="figures"><thead><tr><td></td><th scope="col">p50</th><th scope="col">p99</th><th scope="col">items</th></tr></thead>
      <tbody>${line(`Last ${whole(windowS)}`, latency.now)}${line("Last 15 min", latency.last_15_min)}</tbody></table>
    <${Sparkline} series=${latency.series} /></${Section}>`;
}

function Sparkline({series}) {
  const known = series.filter((each) => each.quantiles !== null);
  if (known.length < 2) return html`<p class="quiet">The curve of the last 15 minutes begins after the first intervals.</p>`;
  const [width, height, from, until] = [320, 56, series[0].at, series[series.length - 1].at];
  const values = known.flatMap((each) => [each.quantiles.p50_s, each.quantiles.p99_s]);
  const top = Math.log10(Math.max(...values));
  const bottom = Math.min(Math.log10(Math.max(1e-6, Math.min(...values))), top - 0.5);
  const x = (at) => (((at - from) / (until - from)) * width).toFixed(1);
  const y = (s) => (2 + (1 - (Math.log10(Math.max(1e-6, s)) - bottom) / (top - bottom)) * (height - 4)).toFixed(1);
  const curve = (quantile) => {
    let pen = "M";
    let d = "";
    for (const {at, quantiles} of series) {
      if (quantiles !== null) d += `${pen}${x(at)} ${y(quantiles[quantile])}`;
      pen = quantiles === null ? "M" : "L";
    }
    return d;
  };
  const greatest = Math.max(...known.map((each) => each.quantiles.p99_s));
  const text = `${whole(until - from)} up to now; the greatest p99 was ${duration(greatest)}. Logarithmic scale.`;
  return html`<figure class="spark"><svg viewBox=${`0 0 ${width} ${height}`} preserveAspectRatio="none" role="img" aria-label=${`Latency: ${text}`}>
      <path class="p50" d=${curve("p50_s")} /><path class="p99" d=${curve("p99_s")} /></svg>
    <figcaption><span class="key p99">p99</span> <span class="key p50">p50</span> ${text}</figcaption></figure>`;
}

const BREAKER_GLYPHS = {"closed": "✓", "open": "✕", "half-open": "◐"};

export function Breakers({breakers, actions, act}) {
  if (!breakers.length) return null;
  return html`<${Section} id="breakers" title="Circuit breakers">
    <ul class="list">${breakers.map((each) => html`
      <li key=${each.name} data-breaker=${each.name} data-state=${each.state} class=${each.state === "closed" ? "" : "alarming"}>
        <b>${each.name}</b> <span class="word">${BREAKER_GLYPHS[each.state]} ${each.state === "closed" ? "closed (calls pass)" : each.state}${each.forced ? ", forced by an action" : ""}</span>
        ${each.probe_in_s !== null && html`<span class="word">next probe ${each.probe_in_s < 0.5 ? "now" : `in ${whole(each.probe_in_s)}`}</span>`}
        <span class="quiet">used by ${list(each.operators, 4) || "nothing"}; ${plural(each.calls, "call")}, ${plural(each.failures, "failure")}, ${count(each.rejections)} rejected, opened ${plural(each.opened, "time")}</span>
        ${actions && html`<span class="buttons">${["open", "closed", "auto"].map((state) => html`
          <${ActionButton} key=${state} act=${act} path=${`actions/breaker?name=${encodeURIComponent(each.name)}&state=${state}`}
            what=${BREAKER_ACTIONS[state](each.name)}>${{open: "Force open", closed: "Force closed", auto: "Automatic"}[state]}</${ActionButton}>`)}</span>`}
      </li>`)}</ul></${Section}>`;
}

const BREAKER_ACTIONS = {
  open: (name) => `Circuit breaker ${name} stays open: every call through it is rejected until it is set to automatic.`,
  closed: (name) => `Circuit breaker ${name} stays closed: every call is made, whatever fails, until it is set to automatic.`,
  auto: (name) => `Circuit breaker ${name} decides by itself again.`,
};

export function Pools({blocking_pools: threads, worker_pools: workers}) {
  if (!threads.length && !workers.length) return null;
  const idle = threads.filter(isIdle);
  return html`<${Section} id="pools" title="Workers and threads">
    ${workers.map((each) => html`<div key=${`w ${each.name}`} class=${each.exhausted || each.ready < each.workers ? "pool alarming" : "pool"}>
      <b>${each.name}</b> <span class="word">${each.exhausted ? "✕ no worker is left" : `${count(each.ready)} of ${plural(each.workers, "worker")} ready`}</span>
      <span class="quiet">${plural(each.waiting, "call")} waiting, ${count(each.in_flight)} in flight, ${count(each.calls)} made; ${count(each.lost)} lost, ${plural(each.restarts, "restart")}, ${count(each.hung)} hung</span></div>`)}
    ${threads.filter((each) => !isIdle(each)).map(thread)}
    ${idle.length > 0 && html`<details class="pool" key="idle"><summary>${plural(idle.length, "thread pool is idle", "thread pools are idle")}</summary>${idle.map(thread)}</details>`}</${Section}>`;
}

function isIdle({busy, waiting, abandoned, hanging}) {
  return busy === 0 && waiting === 0 && abandoned === 0 && hanging.length === 0;
}

function thread(each) {
  return html`<div key=${`t ${each.name}`} class=${each.hanging.length ? "pool alarming" : "pool"}>
      <b>${each.name}</b> <span class="word">${count(each.busy)} of ${plural(each.threads, "thread")} busy</span>
      <span class="quiet">${plural(each.waiting, "call")} waiting, ${count(each.abandoned)} abandoned</span>
      ${each.hanging.map((sentence) => html`<p key=${sentence}>✕ ${sentence}</p>`)}</div>`;
}

export function Panels({panels}) {
  return panels.map((panel, i) => html`
    <${Section} key=${panel.title} id=${i ? `panel-${i}` : "panels"} title=${panel.title} wide=${panel.columns.length > 4}>
      <div class="scroll" tabindex="0" role="region" aria-label=${panel.title}><table class="figures"><thead><tr><td></td>${panel.columns.map((each) => html`<th key=${each} scope="col">${each}</th>`)}</tr></thead>
      <tbody>${panel.rows.map((row) => html`<tr key=${row.name} class=${row.alarming ? "alarming" : ""}>
        <th scope="row">${row.alarming ? "✕ " : ""}${row.name || "all"}</th>${row.cells.map((cell, k) => html`<td key=${k}>${cell}</td>`)}</tr>`)}</tbody></table></div>
      ${!panel.rows.length && html`<p class="quiet">No figures yet.</p>`}</${Section}>`);
}

export function Timeline({timeline, now, onSelect}) {
  return html`<${Section} id="timeline" title="What the supervisor has decided, newest first">
    ${timeline.length ? "" : html`<p class="quiet">Nothing yet.</p>`}
    <ol class="timeline" tabindex="0" aria-label="Decisions">${[...timeline].reverse().map((each) => html`
      <li key=${each.number} data-decision=${each.decision} data-operator=${each.operator} class=${each.alarming ? "alarming" : ""}>
        <time title=${moment(each.at)} datetime=${new Date(each.at * 1000).toISOString()}>${ago(now - each.at)}</time>
        <span>${each.alarming ? "✕ " : ""}${each.operator ? html`<button class="link" onClick=${() => onSelect(`operator=${each.operator}`)}>${each.operator}</button>: ` : ""}${each.text}${each.times > 1 ? ` (${count(each.times)} times in a row)` : ""}</span></li>`)}</ol></${Section}>`;
}

export function ProcessFigures({process, loop, started_at: startedAt}) {
  const rows = [
    ["Processor", `${percent(process.cpu)} of one core`],
    ["Memory", bytes(process.resident_bytes)],
    ["Open files", `${count(process.open_fds)} of ${count(process.max_fds)}`],
    ["Threads", count(process.threads)],
    ["Event loop", `${duration(loop.lag_s)} late; ${plural(loop.stalls, "stall")}`],
    ["Started", time(startedAt)],
  ];
  return html`<${Section} id="process" title="Process"><table class="figures"><tbody>
    ${rows.map(([what, value]) => html`<tr key=${what}><th scope="row">${what}</th><td>${value}</td></tr>`)}</tbody></table></${Section}>`;
}

/** Every operator as a row: what the topology shows, for a screen reader and for small screens. */
export function OperatorTable({doc, open, onToggle, onSelect}) {
  const marks = new Set(doc.bottlenecks.map((each) => each.operator));
  const head = ["State", "Busy", "Idle", "Blocked", "In/s", "Out/s", "p99", "Restarts", "Dead letters"];
  return html`<details class="card wide" open=${open} onToggle=${(event) => onToggle(event.currentTarget.open)}>
    <summary>All operators as a table</summary>
    ${open && html`<div class="scroll" tabindex="0" role="region" aria-label="Operators"><table class="figures">
      <thead><tr><th scope="col">Operator</th>${head.map((each) => html`<th key=${each} scope="col">${each}</th>`)}</tr></thead>
      <tbody>${doc.operators.map((each) => html`<tr key=${each.name} class=${marks.has(each.name) ? "alarming" : ""}>
        <th scope="row"><button class="link" onClick=${() => onSelect(`operator=${each.name}`)}>${each.name}</button>${marks.has(each.name) ? " (bottleneck)" : ""}</th>
        <td>${stateWithGlyph(each)}</td><td>${each.role === "source" ? "–" : percent(each.shares.busy)}</td><td>${percent(each.shares.idle)}</td><td>${percent(each.shares.blocked)}</td>
        <td>${count(each.rate_in)}</td><td>${count(each.rate_out)}</td><td>${each.latency === null ? "–" : duration(each.latency.p99_s)}</td>
        <td>${count(each.budget.restarts)}</td><td>${count(Object.values(each.dead_letters).reduce((a, b) => a + b, 0))}</td></tr>`)}</tbody></table></div>`}
  </details>`;
}
