// Where operators and edges are drawn. Pure functions; the result depends on the topology and the width, not on figures.

export const NODE_HEIGHT = 56;
const ROW_GAP = 20; // room for the badge above a node and the note below it
const PASSAGE_HEIGHT = 10; // where an edge passes a column
const MARGIN = 8;
const TOP = 16;
const PITCH = {min: 138, max: 236};
const MIN_SCALE = 0.85;
const PORTS = 34; // edges begin and end within these pixels of a node's side

/**
 * {width, height, shown, narrow, nodeWidth, nodes: Map(name -> {x, y}), edges: Map(id -> {points, label})}. shown is the width in CSS
 * pixels; it is smaller than width if the drawing is scaled down to fit, and greater than the given one if it must scroll.
 */
export function layout(operators, edges, available) {
  const columns = Math.max(1, ...operators.map((each) => each.column + 1));
  const pitch = Math.min(PITCH.max, Math.max(PITCH.min, (available - 2 * MARGIN) / (columns - 0.3)));
  const gap = Math.round(Math.max(48, pitch * 0.3));
  const nodeWidth = Math.round(pitch - gap);
  const placed = rows(operators, edges, columns);
  const x = (column) => MARGIN + column * pitch;
  const width = x(columns - 1) + nodeWidth + MARGIN;
  const nodes = new Map(operators.map((each) => [each.name, {x: x(each.column), y: placed.y.get(each.name)}]));
  const ends = ports(edges, placed);
  const drawn = new Map(
    edges.map((edge) => {
      const from = nodes.get(edge.upstream);
      const to = nodes.get(edge.downstream);
      const middle = NODE_HEIGHT / 2;
      const points = [{x: from.x + nodeWidth, y: from.y + middle + ends.get(`out ${edge.id}`)}];
      for (const passage of placed.passages.get(edge.id)) {
        const y = placed.y.get(passage.key) + PASSAGE_HEIGHT / 2;
        points.push({x: x(passage.column), y}, {x: x(passage.column) + nodeWidth, y});
      }
      points.push({x: to.x - 1, y: to.y + middle + ends.get(`in ${edge.id}`)});
      return [edge.id, {points, label: label(edge, edges, points)}];
    }),
  );
  const scale = Math.max(MIN_SCALE, Math.min(1, available / width));
  return {width, height: placed.height, shown: Math.floor(width * scale), narrow: gap < 58, nodeWidth, nodes, edges: drawn};
}

/** The y of each operator and of each passage of a long edge, so that neighbours are beside each other. */
function rows(operators, edges, columns) {
  const items = Array.from({length: columns}, () => []);
  for (const each of operators) {
    items[each.column].push({key: each.name, row: each.row, height: NODE_HEIGHT + ROW_GAP, before: []});
  }
  const byKey = new Map(items.flat().map((item) => [item.key, item]));
  const columnOf = new Map(operators.map((each) => [each.name, each.column]));
  const passages = new Map();
  for (const edge of edges) {
    const through = [];
    let previous = edge.upstream;
    for (let column = columnOf.get(edge.upstream) + 1; column < columnOf.get(edge.downstream); column += 1) {
      const item = {key: `${edge.id} ${column}`, height: PASSAGE_HEIGHT + ROW_GAP, before: [previous]};
      items[column].push(item);
      byKey.set(item.key, item);
      through.push({key: item.key, column});
      previous = item.key;
    }
    passages.set(edge.id, through);
    byKey.get(edge.downstream).before.push(previous);
  }
  const middle = new Map();
  for (const column of items) place(column, middle);
  for (let column = columns - 2; column >= 0; column -= 1) alignWithReaders(items, column, middle);
  const y = new Map([...middle].map(([key, at]) => [key, at - (byKey.get(key).height - ROW_GAP) / 2]));
  const top = Math.min(...y.values()) - TOP;
  for (const [key, at] of y) y.set(key, Math.round(at - top));
  const height = Math.max(...[...byKey].map(([key, item]) => y.get(key) + item.height)) + MARGIN;
  return {y, passages, height};
}

function place(column, middle) {
  for (const item of column) {
    const known = item.before.map((key) => middle.get(key)).filter((at) => at !== undefined);
    item.wanted = known.length ? mean(known) : null;
  }
  const operators = column.filter((item) => item.row !== undefined).sort((a, b) => a.row - b.row);
  const ordered = operators.every((item) => item.wanted !== null) ? column : operators;
  if (ordered === column) column.sort((a, b) => a.wanted - b.wanted || (a.row ?? 0) - (b.row ?? 0));
  else column.splice(0, column.length, ...operators, ...column.filter((item) => item.row === undefined));
  spread(column, middle);
}

/** An operator without inputs has its place beside what reads from it. */
function alignWithReaders(items, column, middle) {
  const next = items[column + 1];
  for (const item of items[column]) {
    if (item.before.length) continue;
    const readers = next.filter((each) => each.before.includes(item.key)).map((each) => middle.get(each.key));
    if (readers.length && items[column].length === 1) middle.set(item.key, mean(readers));
  }
}

/** Set the middle of each item: as near to where it is wanted as the order and the heights allow. */
function spread(column, middle) {
  let edge = -Infinity;
  const at = column.map((item, i) => {
    const wanted = item.wanted ?? (i ? edge + item.height / 2 : 0);
    const y = Math.max(wanted, edge + item.height / 2);
    edge = y + item.height / 2;
    return y;
  });
  const wanting = column.map((item, i) => (item.wanted === null ? null : item.wanted - at[i])).filter((d) => d !== null);
  const shift = wanting.length ? mean(wanting) : 0;
  column.forEach((item, i) => middle.set(item.key, at[i] + shift));
}

function mean(numbers) {
  return numbers.reduce((sum, n) => sum + n, 0) / numbers.length;
}

/** How far above or below the middle of its node each edge begins and ends: edges do not cross before their first node. */
function ports(edges, placed) {
  const offsets = new Map();
  const at = (edge, end) => {
    const through = placed.passages.get(edge.id);
    if (!through.length) return placed.y.get(end === "out" ? edge.downstream : edge.upstream) + NODE_HEIGHT / 2;
    return placed.y.get(through[end === "out" ? 0 : through.length - 1].key);
  };
  for (const [end, side] of [["out", "upstream"], ["in", "downstream"]]) {
    const groups = new Map();
    for (const edge of edges) groups.set(edge[side], [...(groups.get(edge[side]) ?? []), edge]);
    for (const group of groups.values()) {
      const step = Math.min(14, PORTS / Math.max(1, group.length - 1));
      group
        .sort((a, b) => at(a, end) - at(b, end))
        .forEach((edge, i) => offsets.set(`${end} ${edge.id}`, group.length === 1 ? 0 : (i - (group.length - 1) / 2) * step));
    }
  }
  return offsets;
}

/** Beside the end at which the edge is alone, so that labels do not cover each other. side: where the curve does not go. */
function label(edge, edges, points) {
  const siblings = edges.filter((each) => each.upstream === edge.upstream).length;
  const first = points[0];
  const end = points[1];
  if (siblings === 1) return {x: first.x + 4, y: first.y, anchor: "start", side: side(end.y - first.y)};
  if (points.length > 2) return {x: end.x + 4, y: end.y, anchor: "start", side: "both"};
  return {x: end.x - 9, y: end.y, anchor: "end", side: side(first.y - end.y)};
}

function side(turnsTo) {
  return turnsTo === 0 ? "both" : turnsTo > 0 ? "above" : "below";
}

/** The path through the points: curves between columns, straight lines past nodes. It turns away from the label's side. */
export function path(points, labelledAt) {
  const turn = labelledAt === "start" ? 0.85 : 0.15;
  const parts = [`M${points[0].x} ${points[0].y}`];
  for (let i = 1; i < points.length; i += 1) {
    const [a, b] = [points[i - 1], points[i]];
    if (a.y === b.y) parts.push(`H${b.x}`);
    else {
      const middle = Math.round(a.x + (b.x - a.x) * turn);
      parts.push(`C${middle} ${a.y} ${middle} ${b.y} ${b.x} ${b.y}`);
    }
  }
  return parts.join("");
}

/** What an arrow key leads to: from an operator along an edge to the next operator, and to its neighbours. */
export function step(operators, edges, active, key) {
  const operator = operators.find((each) => `operator=${each.name}` === active);
  const edge = edges.find((each) => `edge=${each.id}` === active);
  if (operator !== undefined) {
    const {name, column, row} = operator;
    if (key === "ArrowRight") return edgeName(edges.find((each) => each.upstream === name));
    if (key === "ArrowLeft") return edgeName(edges.find((each) => each.downstream === name));
    const beside = operators
      .filter((each) => each.column === column && (key === "ArrowDown" ? each.row > row : each.row < row))
      .sort((a, b) => Math.abs(a.row - row) - Math.abs(b.row - row));
    return beside.length ? `operator=${beside[0].name}` : null;
  }
  if (edge === undefined) return operators.length ? `operator=${operators[0].name}` : null;
  if (key === "ArrowRight") return `operator=${edge.downstream}`;
  if (key === "ArrowLeft") return `operator=${edge.upstream}`;
  const fanOut = edges.filter((each) => each.upstream === edge.upstream);
  const siblings = fanOut.length > 1 ? fanOut : edges.filter((each) => each.downstream === edge.downstream);
  return edgeName(siblings[siblings.indexOf(edge) + (key === "ArrowDown" ? 1 : -1)]);
}

function edgeName(edge) {
  return edge === undefined ? null : `edge=${edge.id}`;
}
