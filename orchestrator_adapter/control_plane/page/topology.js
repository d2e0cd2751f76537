// The graph from left to right, as SVG: operators with state and shares, edges with rate, fill and pressure.

import {blocker, isDown, restartIn} from "./findings.js";
import {count, percent, plural, rate, whole} from "./format.js";
import {layout, NODE_HEIGHT, path, step} from "./layout.js";
import {html, useEffect, useRef} from "./vendor/htm-preact.js";

const GLYPHS = {
  waiting: "○", running: "●", paused: "‖", restarting: "↻", ok: "✓", errored: "✕", panicked: "✕", aborted: "■", straggler: "✕",
};
export const STATES = ["busy", "idle", "blocked", "down"];
const HAS_ENDED = new Set(["ok", "errored", "panicked", "aborted", "straggler"]);
const HIGH = 0.25; // of the time under pressure
const ARROWS = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]);

export function pressure(edge) {
  return edge.pressure >= HIGH ? "high" : edge.pressure > 0 ? "some" : "none";
}

export function stateText(operator) {
  return operator.state === "restarting" ? `restarts ${restartIn(operator)}` : operator.state;
}

export function stateWithGlyph(operator) {
  return `${glyph(operator)} ${stateText(operator)}`;
}

function glyph(operator) {
  return GLYPHS[operator.state] ?? "●";
}

let cached = {key: "", drawn: null};

function drawn(doc, width) {
  const key = JSON.stringify([width, doc.operators.map((o) => [o.name, o.column, o.row]), doc.edges.map((e) => e.id)]);
  if (cached.key !== key) cached = {key, drawn: layout(doc.operators, doc.edges, width)};
  return cached.drawn;
}

export function Topology({doc, width, selected, active, onActive, onSelect}) {
  const figure = useRef(null);
  const where = drawn(doc, width);
  const marks = new Set(doc.bottlenecks.map((each) => each.operator));
  const open = new Map(doc.breakers.filter((each) => each.state !== "closed").map((each) => [each.name, each]));
  const current = active ?? (doc.operators.length ? `operator=${doc.operators[0].name}` : null);
  const first = doc.bottlenecks[0]?.operator;

  useEffect(() => {
    const mark = first === undefined ? undefined : where.nodes.get(first);
    const scrolls = figure.current;
    if (mark === undefined || scrolls.scrollWidth <= scrolls.clientWidth) return;
    const scale = where.shown / where.width;
    scrolls.scrollTop = (mark.y + NODE_HEIGHT / 2) * scale - scrolls.clientHeight / 2;
    scrolls.scrollLeft = (mark.x + where.nodeWidth / 2) * scale - scrolls.clientWidth / 2;
  }, [first, width]);

  function onKeyDown(event) {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      onSelect(current);
      return;
    }
    if (!ARROWS.has(event.key)) return;
    event.preventDefault();
    const next = step(doc.operators, doc.edges, current, event.key);
    if (next === null) return;
    onActive(next);
    element(figure.current, next)?.focus();
  }

  const focus = (id) => ({
    "tabindex": id === current ? 0 : -1,
    "data-id": id,
    "onFocus": () => onActive(id),
    "onClick": () => onSelect(id),
    "aria-pressed": id === selected ? "true" : "false",
  });
  return html`
    <div class=${first === undefined ? "topology" : "topology marked"} ref=${figure}>
      <svg width=${where.shown} height=${Math.ceil((where.height * where.shown) / where.width)}
        viewBox=${`0 0 ${where.width} ${where.height}`} role="group"
        aria-label="Topology, from left to right. The arrow keys move along the edges, and Enter opens the details."
        onKeyDown=${onKeyDown}>
        <defs>
          <pattern id="hatch" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
            <rect width="4" height="4" class="fill-blocked" /><rect width="1.4" height="4" class="fill-stripe" />
          </pattern>
        </defs>
        ${doc.edges.map((edge) => html`<${Line} key=${edge.id} edge=${edge} where=${where.edges.get(edge.id)}
          focus=${focus(`edge=${edge.id}`)} />`)}
        <g aria-hidden="true">${doc.edges.map((edge) => html`<${Label} key=${edge.id} edge=${edge}
          at=${where.edges.get(edge.id).label} narrow=${where.narrow} />`)}</g>
        ${doc.operators.map((each) => html`<${Node} key=${each.name} operator=${each} at=${where.nodes.get(each.name)}
          width=${where.nodeWidth} bottleneck=${marks.has(each.name)} blocks=${each.name === blocker(doc)}
          breakers=${each.breakers.filter((name) => open.has(name)).map((name) => open.get(name))}
          focus=${focus(`operator=${each.name}`)} />`)}
      </svg>
    </div>`;
}

export function element(within, id) {
  return [...within.querySelectorAll("[data-id]")].find((each) => each.getAttribute("data-id") === id);
}

function Node({operator, at, width, bottleneck, blocks, breakers, focus}) {
  const {name, state, shares} = operator;
  const note = noteOf(operator, breakers);
  const label = [
    name,
    operator.role,
    state,
    bottleneck ? "bottleneck" : "",
    blocks ? "blocks the event loop" : "",
    ...breakers.map((each) => `breaker ${each.name} ${each.state}`),
  ].filter(Boolean);
  const badge = blocks ? "BLOCKS LOOP" : bottleneck ? "BOTTLENECK" : "";
  const kind = isDown(operator) || blocks ? "bad" : state === "paused" ? "warn" : state;
  return html`
    <g class=${`node ${operator.role} is-${kind}`} transform=${`translate(${at.x} ${at.y})`} role="button"
      aria-label=${label.join(", ")} data-operator=${name} data-state=${state}
      data-bottleneck=${bottleneck ? "true" : "false"} ...${focus}>
      <title>${`${name}: ${stateText(operator)}; ${shareText(shares, operator.role)}`}</title>
      <rect class="ring" x="-4" y="-4" width=${width + 8} height=${NODE_HEIGHT + 8} rx="9" />
      <rect class="box" width=${width} height=${NODE_HEIGHT} rx=${operator.role === "operator" ? 6 : 0} />
      ${operator.role === "source" && html`<rect class="role" width="4" height=${NODE_HEIGHT} />`}
      ${operator.role === "sink" && html`<rect class="role" x=${width - 4} width="4" height=${NODE_HEIGHT} />`}
      <text class="name" x="8" y="15">${fit(name, width - 10, 6.6)}</text>
      <text class="state" x="8" y="29">${`${glyph(operator)} ${state}`}</text>
      <text class="share" x="8" y="42">${below(operator, width)}</text>
      <${Bar} shares=${shares} source=${operator.role === "source"} x=${7} y=${46} width=${width - 14} height=${6} />
      ${badge && html`<rect class="badge" x="-1" y="-13" width="88" height="13" /><text class="badge-text" x="4" y="-3">${badge}</text>`}
      ${note && html`<text class="note" x="2" y=${NODE_HEIGHT + 11}>${fit(note, width + 36, 5.6)}</text>`}
    </g>`;
}

function below(operator, width) {
  if (operator.state === "restarting") return restartIn(operator);
  if (HAS_ENDED.has(operator.state)) return "has ended";
  const {busy, blocked} = operator.shares;
  if (operator.role !== "source") return `busy ${percent(busy)}`;
  return blocked > 0.01 ? `blocked ${percent(blocked)}` : `${width < 110 ? "" : "takes "}in ${rate(operator.rate_in)}/s`; // its busy time includes the wait for its feed
}

function noteOf(operator, breakers) {
  const {budget} = operator;
  if (breakers.length) {
    const [first] = breakers;
    return `breaker ${first.state}${first.probe_in_s === null ? "" : `, ${whole(first.probe_in_s)}`}`;
  }
  if (budget.restarts === 0) return "";
  return budget.left === null ? plural(budget.restarts, "restart") : `${plural(budget.left, "restart")} left`;
}

/** The shares as a stacked bar; they add up to 1. Of a source, the busy share includes the wait for its feed. */
export function Bar({shares, source, x, y, width, height}) {
  let from = x;
  return STATES.map((state) => {
    const length = Math.round(shares[state] * width * 10) / 10;
    const rect = html`<rect key=${state} class=${`fill-${source && state === "busy" ? "feed" : state}`} x=${from} y=${y} width=${length} height=${height} />`;
    from += length;
    return rect;
  });
}

export function stateName(state, role) {
  if (state === "busy" && role === "source") return "reads, or waits for its feed";
  return state === "blocked" ? "blocked on output" : state;
}

export function shareText(shares, role) {
  return STATES.filter((state) => state !== "down" || shares.down > 0)
    .map((state) => `${stateName(state, role)} ${percent(shares[state])}`)
    .join(", ");
}

function Line({edge, where, focus}) {
  const held = pressure(edge);
  const {points, label} = where;
  const line = path(points, label.anchor);
  const end = points[points.length - 1];
  const pressed = held === "none" ? "no pressure" : `${held} pressure`;
  return html`
    <g class=${`edge pressure-${held}`} role="button" aria-label=${`edge ${edge.id}, ${pressed}`} data-edge=${edge.id}
      data-pressure=${held} ...${focus}>
      <title>${`${edge.id}: ${rate(edge.rate)} items/s, ${count(edge.occupancy)} of ${count(edge.capacity)} in it, under pressure for ${percent(edge.pressure)} of the time`}</title>
      <path class="hit" d=${line} />
      <path class="ring" d=${line} />
      <path class="line" d=${line} stroke-width=${(1.5 + 4.5 * Math.min(1, edge.fill)).toFixed(1)} />
      <path class="tip" d=${`M${end.x - 6} ${end.y - 5}L${end.x + 1} ${end.y}L${end.x - 6} ${end.y + 5}z`} />
    </g>`;
}

/** Above all lines, and on the side from which its own line turns away. */
function Label({edge, at, narrow}) {
  const held = pressure(edge);
  const filled = edge.fill >= 0.1;
  const [rateAt, fillAt] = {both: [-6, 14], above: filled ? [-18, -6] : [-6], below: [14, 26]}[at.side];
  return html`<g class=${`label pressure-${held}`}>
    <text class="rate" x=${at.x} y=${at.y + rateAt} text-anchor=${at.anchor}>${rate(edge.rate)}/s</text>
    ${filled && html`<text class="fill" x=${at.x} y=${at.y + fillAt} text-anchor=${at.anchor}>${percent(edge.fill)}${narrow || at.side !== "both" ? "" : " full"}</text>`}</g>`;
}

function fit(text, width, character) {
  const most = Math.floor(width / character);
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

const LEGEND = {busy: "busy", idle: "idle (waits for input)", blocked: "blocked on output", down: "down"};

export function Legend() {
  return html`
    <ul class="legend" aria-label="What the bars and edges mean">
      ${STATES.map((state) => html`<li key=${state}><svg width="14" height="10" aria-hidden="true"><rect width="14" height="10" class=${`fill-${state}`} /></svg> ${LEGEND[state]}</li>`)}
      <li><svg width="14" height="10" aria-hidden="true"><rect width="14" height="10" class="fill-feed" /></svg> source: reads, or waits for its feed</li>
      <li><svg width="24" height="10" aria-hidden="true"><path class="line-none" d="M0 5H24" /></svg> edge flows</li>
      <li><svg width="24" height="10" aria-hidden="true"><path class="line-some" d="M0 5H24" /></svg> some pressure</li>
      <li><svg width="24" height="10" aria-hidden="true"><path class="line-high" d="M0 5H24" /></svg> high pressure: it holds its writer up</li>
      <li>n/s: items per second; n %: how full the edge is</li>
    </ul>`;
}
