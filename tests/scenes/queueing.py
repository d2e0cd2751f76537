"""Random queueing networks as graphs, and which of their operators limit them: by the bottleneck law, without a run.

``Network.loads`` solves the fluid limit of a network: flows instead of items. It knows nothing of the rule that marks
bottlenecks, or of what a run has measured. The bottleneck law is that of Denning & Buzen, *The Operational Analysis of Queueing
Network Models*, ACM Computing Surveys 10(3), 1978, section 6.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import count, islice
from math import inf, isclose
from pathlib import Path
from typing import Any, Literal, TypeAlias

from orchestrator_adapter import Factory, FlowPolicy, OperatorGraph, VertexId, WiredEnds
from orchestrator_adapter.primitives.clock import sleep

Kind: TypeAlias = Literal["source", "operator", "fan-in", "broadcast", "router", "sink"]
Policy: TypeAlias = Literal["backpressure", "shed", "timed", "spill", "spill to a small disk"]

_STEPS_OF_ACCEPTANCE = (*[0.5] * 60, *[0.2] * 200, *[0.05] * 2_000)  # towards the fixed point
TIE = 0.1
"""Operators whose utilisations differ by less are equally slow. The rule sees no pressure below 5 % of the time, and in a
window with some hundred irregular service times their mean differs from the expected one by some 5 %."""

_EXACT = 1e-5  # the fixed point is as exact
_PLENTY = 1e9  # items per second: no operator here serves so many
_SMALL_DISK_BYTES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator.

    Attributes:
        name: Its name.
        kind: What it is. A router gives each output an equal share of its items.
        service_s: The mean time that it needs for an item of its input. For a source: between two items of its feed.
        irregular: The time is distributed exponentially, and not always the same.
        batch: How many items it takes at once.
        gain: Items that it sends for each one that it takes.
    """

    name: str
    kind: Kind
    service_s: float = 0.0
    irregular: bool = False
    batch: int = 1
    gain: int | Literal["half"] = 1

    @property
    def items_out(self) -> float:
        """Items that it sends for each one that it takes, to each output that gets it."""
        return 0.5 if self.gain == "half" else float(self.gain)

    @property
    def most_per_s(self) -> float:
        """The greatest rate of its input that it can serve."""
        return 1 / self.service_s if self.service_s else inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One edge. ``share``: the part of its writer's items that it gets. ``deadline_s`` is that of a timed edge."""

    upstream: str
    downstream: str
    capacity: int
    policy: Policy = "backpressure"
    share: float = 1.0
    deadline_s: float = inf

    def accepts(self, taken_per_s: float) -> float:
        """The greatest rate that its writer can send, if its reader takes so much.

        A timed edge that is full drops what it holds when that is too old, so it passes at least its capacity in a deadline.
        """
        match self.policy:
            case "shed" | "spill":
                return _PLENTY
            case "timed":
                return max(taken_per_s, self.capacity / self.deadline_s)
            case _:
                return taken_per_s


@dataclass(frozen=True, slots=True)
class Truth:
    """What limits a network.

    Attributes:
        must: Operators that are saturated, and would be if they were faster by ``TIE``.
        may: Operators that are saturated, or would be if they were slower by about ``TIE``.
        is_limited: An operator is saturated, and so at least one must be marked.
    """

    must: frozenset[str]
    may: frozenset[str]
    is_limited: bool

    def allows(self, marked: Collection[str]) -> bool:
        """Whether these are the right ones to mark."""
        return self.must <= set(marked) <= self.may and bool(marked) >= self.is_limited


@dataclass(frozen=True, slots=True)
class Network:
    """Nodes in topological order, and links."""

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]

    # The run.

    def graph(self, folder: Path, rng: random.Random) -> OperatorGraph:
        """The network as a graph that runs until its shutdown."""
        graph = OperatorGraph("network")
        ids: dict[str, VertexId] = {}
        for node in self.nodes:
            factory = _factory(node, random.Random(rng.random()))
            match node.kind:
                case "source":
                    ids[node.name] = graph.add_source(node.name, factory)
                case "operator":
                    ids[node.name] = graph.add_operator(node.name, factory, expanding=node.gain != 1)
                case "fan-in":
                    ids[node.name] = graph.add_fan_in(node.name, factory)
                case "broadcast" | "router":
                    ids[node.name] = graph.add_fan_out(node.name, factory)
                case "sink":
                    ids[node.name] = graph.add_sink(node.name, factory)
        for link in self.links:
            policy = _flow_policy(link, folder)
            graph.connect(ids[link.upstream], ids[link.downstream], link.capacity, policy=policy)
        return graph

    # The law.

    def loads(self) -> dict[str, float]:
        """The utilisation of every operator in the fluid limit: its flow times its service time. 1 is saturated.

        The sources send as fast as their feeds, until an operator is saturated: it accepts no more, and what waits for it
        does not either. A fan-in with too much input serves its inputs in turn, up to a batch of each.
        """
        return _Fluid(self).loads()

    def truth(self) -> Truth:
        """What limits it. Sources are not included."""
        loads = self.loads()
        operators = {node.name: node for node in self.nodes if node.kind != "source"}
        saturated = {name for name in operators if loads[name] > 1 - _EXACT}
        faster = {name: self.with_service({name: operators[name].service_s * (1 - TIE)}).loads() for name in saturated}
        return Truth(
            must=frozenset(name for name in saturated if faster[name][name] > 1 - _EXACT),
            may=frozenset(name for name in operators if loads[name] > 1 - TIE),
            is_limited=bool(saturated),
        )

    def scaled(self, factor: float) -> Network:
        """The same network, slower by ``factor``."""
        return Network(
            tuple(replace(node, service_s=node.service_s * factor) for node in self.nodes),
            tuple(replace(link, deadline_s=link.deadline_s * factor) for link in self.links),
        )

    def with_service(self, times: Mapping[str, float]) -> Network:
        """The same network with other service times for some nodes."""
        nodes = tuple(replace(node, service_s=times.get(node.name, node.service_s)) for node in self.nodes)
        return replace(self, nodes=nodes)


class _Fluid:
    """The rates of a network at which nothing changes any more, as a fixed point.

    ``supply`` of a link is what its writer would send if the link itself accepted everything; ``accept`` is what the link
    accepts. The two determine each other: supply goes downstream, acceptance upstream.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.inputs = {node.name: [it for it in network.links if it.downstream == node.name] for node in network.nodes}
        self.outputs = {node.name: [it for it in network.links if it.upstream == node.name] for node in network.nodes}
        self.batch = {node.name: node.batch for node in network.nodes}
        self.accept: dict[Link, float] = dict.fromkeys(network.links, _PLENTY)
        self.supply: dict[Link, float] = dict.fromkeys(network.links, inf)

    def loads(self) -> dict[str, float]:
        for step in _STEPS_OF_ACCEPTANCE:
            before = dict(self.accept)
            self._send_supply_downstream()
            self._send_acceptance_upstream()
            if all(isclose(self.accept[link], rate, rel_tol=1e-7) for link, rate in before.items()):
                return self._flow()
            for link, rate in before.items():  # a part of the way, so that the branches of a diamond do not take turns
                self.accept[link] = rate * (1 - step) + self.accept[link] * step
        raise ArithmeticError("the rates of the network do not settle")

    def _send_supply_downstream(self) -> None:
        for node in self.network.nodes:
            most = node.most_per_s
            if node.kind != "source":
                most = min(most, sum(self.supply[link] for link in self.inputs[node.name]))
            for link in self.outputs[node.name]:
                others = (it for it in self.outputs[node.name] if it is not link)
                taken = min([most, *(self.accept[it] / (it.share * node.items_out) for it in others)])
                self.supply[link] = taken * link.share * node.items_out

    def _send_acceptance_upstream(self) -> None:
        for node in reversed(self.network.nodes):
            most = self._most(node)
            inputs = self.inputs[node.name]
            for link in inputs:
                wanted = {it: inf if it is link else self.supply[it] for it in inputs}
                self.accept[link] = min(_PLENTY, link.accepts(self._in_turn(most, wanted)[link]))

    def _most(self, node: Node) -> float:
        """The greatest rate that it can take, because of itself and its outputs."""
        outputs = self.outputs[node.name]
        return min([node.most_per_s, *(self.accept[link] / (link.share * node.items_out) for link in outputs)])

    def _in_turn(self, most: float, wanted: Mapping[Link, float]) -> dict[Link, float]:
        """What each input gets of ``most``: an input that wants less than its turn leaves the rest to the others."""
        got: dict[Link, float] = {}
        left = dict(wanted)
        while left:
            weights = {link: min(link.capacity, self.batch[link.downstream]) for link in left}
            level = (most - sum(got.values())) / sum(weights.values()) if most < inf else inf
            content = [link for link in left if left[link] <= level * weights[link]]
            if not content:
                return got | {link: level * weights[link] for link in left}
            got |= {link: left.pop(link) for link in content}
        return got

    def _flow(self) -> dict[str, float]:
        loads: dict[str, float] = {}
        arriving: dict[Link, float] = {}
        for node in self.network.nodes:
            most = self._most(node)
            wanted = sum(arriving[link] for link in self.inputs[node.name]) if node.kind != "source" else inf
            taken = min(most, wanted)
            loads[node.name] = taken * node.service_s
            for link in self.outputs[node.name]:
                arriving[link] = taken * link.share * node.items_out
        return loads


# The operators.


def _factory(node: Node, rng: random.Random) -> Factory:
    async def work(ends: WiredEnds, items: int) -> None:
        if node.service_s:
            seconds = rng.gammavariate(items, node.service_s) if node.irregular else items * node.service_s
            await sleep(ends.clock, seconds)

    match node.kind:
        case "source":
            return _source(node, work)
        case "fan-in":
            return _fan_in(node, work)
        case "operator" | "sink":
            return _operator(node, work)
        case "broadcast" | "router":
            return _fan_out(node, work, rng)


_Work: TypeAlias = Callable[[WiredEnds, int], Any]


def _source(node: Node, work: _Work) -> Factory:
    async def run(ends: WiredEnds) -> None:
        numbers = count()
        while not ends.shutdown.is_set:
            await ends.unless_shutdown(work(ends, node.batch))
            await ends.emit(list(islice(numbers, node.batch)))

    return run


def _operator(node: Node, work: _Work) -> Factory:
    async def run(ends: WiredEnds) -> None:
        seen = 0
        async for batch in ends.receiver.batches(node.batch):
            await work(ends, len(batch))
            if not ends.senders:
                continue
            if node.gain == "half":
                out: Sequence[Any] = [item for number, item in enumerate(batch, seen) if number % 2]
                seen += len(batch)
                ends.discard(len(batch) - len(out))
            else:
                out = [item for item in batch for _ in range(node.gain)]
            ends.commit(out, acknowledge=len(batch))
            await ends.flush()

    return run


def _fan_in(node: Node, work: _Work) -> Factory:
    async def run(ends: WiredEnds) -> None:
        while True:
            moved = False
            for receiver in ends.receivers:
                if batch := receiver.try_recv_many(node.batch):
                    moved = True
                    await work(ends, len(batch))
                    ends.sender.offer(batch)
                    receiver.acknowledge(len(batch))
                    await ends.flush()
            if not moved:
                if all(receiver.ended for receiver in ends.receivers):
                    return
                await ends.wait_for_items()

    return run


def _fan_out(node: Node, work: _Work, rng: random.Random) -> Factory:
    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(node.batch):
            await work(ends, len(batch))
            shares: list[list[Any]] = [[] for _ in ends.senders]
            for item in batch:
                for share in shares if node.kind == "broadcast" else (rng.choice(shares),):
                    share.append(item)
            for sender, items in zip(ends.senders, shares, strict=True):
                if items:
                    sender.offer(items)
            ends.receiver.acknowledge(len(batch))
            await ends.flush()

    return run


def _flow_policy(link: Link, folder: Path) -> FlowPolicy:
    match link.policy:
        case "backpressure":
            return FlowPolicy.backpressure()
        case "shed":
            return FlowPolicy.shed()
        case "timed":
            return FlowPolicy.timed(timedelta(seconds=link.deadline_s), dead_letter=False)
        case "spill":
            return FlowPolicy.spill(folder)
        case "spill to a small disk":
            return FlowPolicy.spill(folder, max_bytes=_SMALL_DISK_BYTES)


# Random networks.

_STEPS = (3, 16)
_SOURCES = (1, 1, 1, 2, 2, 3)
USUAL_CAPACITIES = (8, 16, 32, 64)
TINY_CAPACITIES = (1, 2, 4)
_BATCHES = (1, 1, 4, 16)


def random_network(
    rng: random.Random, *, slow: int, greedy: bool | None = None, capacities: Sequence[int] = USUAL_CAPACITIES
) -> Network:
    """A random network with ``slow`` operators that are slower than the rest.

    Its sources send as fast as they can (``greedy``), or each at a rate of its own; by default some do. Without slow
    operators, every operator could serve at least 1.6 times what such a rate gives it.
    """
    drawing = _Drawing(rng, capacities)
    structure = drawing.network()
    rate = {node.name: 10 ** rng.uniform(-0.3, 0.3) for node in structure.nodes if node.kind == "source"}
    greedy_ones = {name for name in rate if (rng.random() < 0.5 if greedy is None else greedy)}
    paced = structure.with_service({name: 1 / rate[name] for name in rate})
    flows = _flows(paced)
    times = {name: 0.0 if name in greedy_ones else 1 / rate[name] for name in rate}
    slow_ones = rng.sample([node.name for node in structure.nodes if node.kind != "source"], slow)
    for node in structure.nodes:
        if node.name in slow_ones:
            times[node.name] = rng.uniform(1.5, 6.0) / flows[node.name]
        elif node.kind in ("operator", "sink") or (node.kind != "source" and rng.random() < 0.3):
            times[node.name] = rng.uniform(0.05, 0.6) / flows[node.name]
    network = structure.with_service(times)
    links = tuple(
        replace(link, deadline_s=link.capacity / (rng.uniform(0.3, 1.5) * flows[link.upstream] * link.share))
        if link.policy == "timed"
        else link
        for link in network.links
    )
    return _in_seconds(replace(network, links=links))


def _flows(network: Network) -> dict[str, float]:
    """The flow through every node if only the feeds limit it."""
    flows: dict[str, float] = {}
    for node in network.nodes:
        arriving = (
            flows[link.upstream] * link.share * next(it for it in network.nodes if it.name == link.upstream).items_out
            for link in network.links
            if link.downstream == node.name
        )
        flows[node.name] = 1 / node.service_s if node.kind == "source" else sum(arriving)
    return flows


def _in_seconds(network: Network, *, slowest_per_s: float = 60.0, all_per_s: float = 1_000.0) -> Network:
    """Scaled so that the busiest operators serve at least so many items a second, and all together not too many to run."""
    loads = network.loads()
    most = max(loads.values())
    flows = {node.name: loads[node.name] / node.service_s for node in network.nodes if node.service_s}
    slowest = min(flow for name, flow in flows.items() if loads[name] > most - 0.05)
    return network.scaled(max(slowest / slowest_per_s, sum(flows.values()) / all_per_s))


class _Drawing:
    """Draws the structure of a network: open ends grow operators, split and join, and get sinks in the end."""

    def __init__(self, rng: random.Random, capacities: Sequence[int]) -> None:
        self.rng = rng
        self.capacities = capacities
        self.nodes: list[Node] = []
        self.links: list[Link] = []
        self.ends: list[tuple[str, float]] = []  # a node that needs a reader, and the link's share

    def network(self) -> Network:
        for _ in range(self.rng.choice(_SOURCES)):
            self._open(self._add("source"), 1, 1.0)
        for _ in range(self.rng.randint(*_STEPS)):
            step = self.rng.choices(("operator", "broadcast", "router", "fan-in"), (6, 2, 1, 3))[0]
            if step == "operator":
                self._open(self._read("operator", 1), 1, 1.0)
            elif step == "fan-in" and len(self.ends) > 1:
                self._open(self._read("fan-in", min(len(self.ends), self.rng.choice((2, 2, 3)))), 1, 1.0)
            elif step in ("broadcast", "router"):
                branches = self.rng.choice((2, 2, 3))
                node = self._read("broadcast" if step == "broadcast" else "router", 1)
                self._open(node, branches, 1.0 if step == "broadcast" else 1 / branches)
        while self.ends:
            self._read("sink", 1)
        return Network(tuple(self.nodes), tuple(self.links))

    def _add(self, kind: Kind) -> Node:
        rng = self.rng
        gain: int | Literal["half"] = rng.choice((1, 1, 1, 1, 2, "half")) if kind == "operator" else 1
        node = Node(
            name=f"{kind} {len(self.nodes)}",
            kind=kind,
            irregular=rng.random() < 0.5,
            batch=rng.choice(_BATCHES),
            gain=gain,
        )
        self.nodes.append(node)
        return node

    def _open(self, node: Node, ends: int, share: float) -> None:
        self.ends += [(node.name, share)] * ends

    def _read(self, kind: Kind, inputs: int) -> Node:
        node = self._add(kind)
        for _ in range(inputs):
            upstream, share = self.ends.pop(self.rng.randrange(len(self.ends)))
            policies: Iterable[Policy] = ("backpressure", "shed", "timed", "spill", "spill to a small disk")
            policy = self.rng.choices(tuple(policies), (30, 2, 2, 1, 1))[0]
            capacity = self.rng.choice(self.capacities)
            self.links.append(
                Link(upstream=upstream, downstream=node.name, capacity=capacity, policy=policy, share=share)
            )
        return node
