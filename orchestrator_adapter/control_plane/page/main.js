// The live page: what comes from the stream, and what is selected, drawn.

import {ActionButton, Confirm} from "./actions.js";
import {Details} from "./details.js";
import {answers, disconnected, level, meaning, named} from "./findings.js";
import {duration, moment, time, whole} from "./format.js";
import {Breakers, Latency, Ledger, OperatorTable, Panels, Pools, ProcessFigures, Timeline} from "./sections.js";
import {listen} from "./stream.js";
import {element, Legend, Topology} from "./topology.js";
import {Component, html, render} from "./vendor/htm-preact.js";

const VERSION = 1;
const TICK_MS = 1_000;

class App extends Component {
  constructor() {
    super();
    this.state = {doc: null, receivedAt: 0, connection: {connected: false, sinceMs: Date.now()}, end: null,
      selected: fragment(), active: null, width: 1000, table: false, action: null, tick: 0};
    this.select = this.select.bind(this);
    this.close = this.close.bind(this);
  }

  componentDidMount() {
    listen({
      onDocument: (doc, receivedAt) => {
        if (doc.version !== VERSION) this.setState({wrong: doc.version});
        else this.latest = {doc, receivedAt, end: null};
        if (!document.hidden) this.setState(this.latest);
      },
      onEnd: (end) => this.setState({end}),
      onConnection: (connection) => this.setState({connection}),
    });
    setInterval(() => {
      if (!document.hidden && Date.now() - this.state.receivedAt > TICK_MS) this.setState({tick: this.state.tick + 1});
    }, TICK_MS);
    document.addEventListener("visibilitychange", () => this.latest && this.setState(this.latest));
    window.addEventListener("hashchange", () => this.setState({selected: fragment()}));
    window.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.state.selected && !this.state.action) this.close();
    });
    this.resized = new ResizeObserver(([entry]) => this.setState({width: Math.floor(entry.contentRect.width)}));
  }

  componentDidUpdate() {
    const card = document.querySelector(".topology");
    if (card && card !== this.observed) {
      this.resized.disconnect();
      this.resized.observe(card);
      this.observed = card;
    }
    const {doc} = this.state;
    if (doc) document.title = `${doc.health.status}: ${doc.graph}`;
  }

  select(id) {
    const [kind] = id.split("=", 1);
    history.replaceState(null, "", `#${kind}=${encodeURIComponent(id.slice(kind.length + 1))}`);
    this.setState({selected: id, active: id});
  }

  close() {
    const {selected} = this.state;
    history.replaceState(null, "", location.pathname + location.search);
    this.setState({selected: ""}, () => element(document, selected)?.focus({preventScroll: true}));
  }

  render(_, {doc, receivedAt, connection, end, selected, active, width, table, action, wrong}) {
    if (wrong) return html`<p class="banner bad" data-banner="version">The server sends version ${String(wrong)} of the document. Reload the page.</p>`;
    if (doc === null) {
      return connection.connected === false && Date.now() - connection.sinceMs > 5_000
        ? html`<p class="banner bad" data-banner="disconnected">No answer from the control plane since ${time(connection.sinceMs / 1000)}, trying again.</p>`
        : html`<p class="loading">Waiting for the first figures of the run …</p>`;
    }
    const gone = !connection.connected || end !== null;
    const now = doc.at + Math.max(0, Date.now() - receivedAt) / 1000;
    const act = (next) => this.setState({action: next});
    const stale = gone || doc.loop.stalled;
    const age = now - doc.at + doc.loop.snapshot_age_s;
    return html`
      <div class=${selected ? "page has-details" : "page"}>
        <div class="content">
          <${Head} doc=${doc} now=${now} gone=${gone} end=${end} act=${act} />
          <main>
            <${Headline} doc=${doc} now=${now} connection=${connection} end=${end} onSelect=${this.select} />
            <div class=${stale ? "stale" : ""}>
              <${Answers} doc=${doc} now=${now} onSelect=${this.select} />
              <section class="card wide" aria-labelledby="topology-title">
                <h2 id="topology-title">Topology <span class="quiet">${stale ? `as it was ${whole(age)} ago` : `figures of the last ${whole(doc.window_s)}`}; select an operator or an edge for its details</span></h2>
                <${Topology} doc=${doc} width=${width} selected=${selected} active=${active}
                  onActive=${(id) => id !== this.state.active && this.setState({active: id})} onSelect=${this.select} />
                <${Legend} />
              </section>
              <${OperatorTable} doc=${doc} open=${table} onToggle=${(open) => this.setState({table: open})} onSelect=${this.select} />
              <div class="cards">
                <${Timeline} timeline=${doc.timeline} now=${now} onSelect=${this.select} />
                <${Ledger} ledger=${doc.ledger} />
                <${Latency} latency=${doc.latency} window_s=${doc.window_s} />
                <${Panels} panels=${doc.panels} />
                <${Breakers} breakers=${doc.breakers} actions=${doc.actions && !gone} act=${act} />
                <${Pools} ...${doc} />
                <${ProcessFigures} process=${doc.process} loop=${doc.loop} started_at=${doc.started_at} />
              </div>
            </div>
          </main>
        </div>
        ${selected && html`<${Details} doc=${doc} now=${now} selected=${selected} onClose=${this.close} onSelect=${this.select} act=${act} />`}
        ${action && html`<${Confirm} action=${action} onClose=${() => this.setState({action: null})} />`}
      </div>`;
  }
}

/** What the address selects: "operator=…", "edge=…" or nothing. */
function fragment() {
  const match = /^#(operator|edge)=(.+)$/.exec(location.hash);
  if (match === null) return "";
  try {
    return `${match[1]}=${decodeURIComponent(match[2])}`;
  } catch {
    return "";
  }
}

const HEALTH = {ok: "✓ ok", degraded: "! degraded", draining: "↓ draining", failing: "✕ failing"};

function Head({doc, now, gone, end, act}) {
  const {status} = doc.health;
  const calm = status === "ok" && level(doc) !== "ok"; // no green beside a headline that asks for attention
  return html`<header class="head">
    <h1>${doc.graph}</h1>
    ${gone
      ? html`<span class="health unknown" data-health="unknown">${end ? "■ ended" : "? no answer"}</span>`
      : html`<span class=${`health ${status} ${calm ? "calm" : ""}`} data-health=${status}>${calm ? "health: ok" : HEALTH[status]}</span>`}
    <span class="quiet">run ${doc.url ? html`<a href=${doc.url} target="_blank" rel="noreferrer">${doc.run} in Prefect ↗</a>` : doc.run}, started ${whole(now - doc.started_at)} ago</span>
    ${doc.actions && !gone && html`<${ActionButton} act=${act} path="actions/drain" danger=${true}
      what="Every source stops; what is in the graph is finished, and then the run ends. This cannot be undone.">Drain the run</${ActionButton}>`}
  </header>`;
}

function Headline({doc, now, connection, end, onSelect}) {
  const lost = end === null && !connection.connected ? disconnected(connection.sinceMs, Date.now()) : null;
  const stalled = lost === null && end === null && doc.loop.stalled;
  const first = end !== null ? `The run has ended: ${end.text}.` : lost !== null ? lost.headline : doc.headline;
  const severe = end !== null ? (GOOD_ENDS.has(end.outcome) ? "info" : "bad") : lost !== null ? "bad" : level(doc);
  const further = end !== null ? [] : lost !== null ? doc.conditions : doc.conditions.slice(1);
  return html`
    ${lost !== null && html`<p class="banner bad" data-banner="disconnected">${lost.banner}</p>`}
    ${end !== null && html`<p class="banner" data-banner="ended">The figures below are the last ones, of ${moment(doc.at)}.</p>`}
    ${stalled && html`<p class="banner bad" data-banner="stalled">The event loop does not answer. The figures below are ${duration(doc.loop.snapshot_age_s)} old.</p>`}
    <p class=${`headline ${severe}`} data-headline=${severe}>${first}</p>
    ${further.length > 0 && html`<ul class="also" aria-label=${lost === null ? "Further conditions" : "Conditions before that"}>
      ${further.map((each, i) => html`<li key=${i}>${lost === null ? "" : "Before: "}<${Condition} text=${each} name=${named(each, doc)} onSelect=${onSelect} /></li>`)}</ul>`}
    ${stalled && doc.loop.stack && html`<details class="stack" open><summary>Where it is blocked</summary><pre tabindex="0">${doc.loop.stack}</pre></details>`}
    <${Announcement} text=${first} />`;
}

const GOOD_ENDS = new Set(["AllOk", "ShutDown", ""]);

function Condition({text, name, onSelect}) {
  return name === null ? text : html`<button class="link" onClick=${() => onSelect(`operator=${name}`)}>${text}</button>`;
}

/** For screen readers: the headline, when its meaning changes, and not with every figure. */
class Announcement extends Component {
  shouldComponentUpdate(next) {
    return meaning(next.text) !== meaning(this.props.text);
  }

  render({text}) {
    return html`<p class="unseen" role="status" aria-live="polite">${text}</p>`;
  }
}

const LEVELS = {ok: "✓", info: "", warn: "!", bad: "✕"};

function Answers({doc, now, onSelect}) {
  const go = (each) =>
    each.operator ? () => onSelect(`operator=${each.operator}`) : () => document.querySelector(each.href)?.scrollIntoView({block: "start"});
  return html`<div class="answers" role="group" aria-label="The run in short">${answers(doc, now).map((each) => {
    const inner = html`<span class="question">${each.question}</span><span class="answer">${LEVELS[each.level]} ${each.answer}</span><span class="more">${each.more}</span>`;
    return each.operator || each.href
      ? html`<button key=${each.question} class=${`tile ${each.level} ${each.current ? "current" : ""}`} onClick=${go(each)}>${inner}</button>`
      : html`<div key=${each.question} class=${`tile ${each.level}`}>${inner}</div>`;
  })}</div>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
