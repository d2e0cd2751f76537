"""Which labels a PromQL expression gives, and whether every metric and label that it names exists.

Parses the part of PromQL that `deploy/` uses; anything else is an error, so that nothing is left unchecked. Prometheus itself
parses the same expressions in ``tests/integration/test_prometheus.py``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

OF_THE_SCRAPE: Final = frozenset({"job", "instance"})
"""Prometheus adds these labels to every series."""

_TOKEN = re.compile(
    r"""(?:\s|\#[^\n]*)*(?:
        (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<duration>\[\s*[0-9a-z]+\s*\])
      | (?P<number>\d+(?:\.\d+)?)
      | (?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
      | (?P<operator>==|!=|=~|!~|>=|<=|[-+*/%^(){},=<>])
      | (?P<end>$)
    )""",
    re.VERBOSE,
)
_OVER_TIME = frozenset(
    {"rate", "increase", "changes", "deriv", "max_over_time", "min_over_time", "sum_over_time", "avg_over_time"}
    | {"count_over_time"}
)
_OF_VECTOR = frozenset({"clamp", "clamp_max", "clamp_min", "abs"})
_AGGREGATIONS = frozenset({"sum", "min", "max", "avg", "count", "topk"})
_BY_PRECEDENCE: Final = (("or",), ("and", "unless"), ("==", "!=", ">=", "<=", ">", "<"), ("+", "-"), ("*", "/", "%"))


class InvalidQuery(ValueError):
    """It cannot be parsed, or names a metric or a label that does not exist."""


@dataclass(slots=True)
class Schema:
    """The series that exist: the labels of each, by the metric's name. ``recorded`` are those that rules make."""

    series: dict[str, list[Mapping[str, str]]] = field(default_factory=dict)
    recorded: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, expositions: Iterable[str]) -> Schema:
        """What these answers of ``/metrics`` have; a family without samples counts as missing."""
        found: dict[str, list[Mapping[str, str]]] = {"up": [{}]}
        for exposition in expositions:
            for family in text_string_to_metric_families(exposition):
                for sample in family.samples:
                    found.setdefault(sample.name, []).append(sample.labels)
        return cls(found)

    def labels(self, name: str, matchers: Mapping[str, Callable[[str], bool]]) -> frozenset[str]:
        """Those of the metric. Raises `InvalidQuery` unless one of its series has all labels of ``matchers`` and fits them."""
        if name in self.recorded:
            labels = self.recorded[name]
        elif name in self.series:
            labels = frozenset(label for each in self.series[name] for label in each) | OF_THE_SCRAPE
        else:
            raise InvalidQuery(f"there is no metric {name}")
        for label in matchers:
            if label not in labels:
                raise InvalidQuery(f"{name} has no label {label}, it has {', '.join(sorted(labels))}")
        of_series = {label: fits for label, fits in matchers.items() if label not in OF_THE_SCRAPE}
        if name in self.series and not any(
            all(fits(each.get(label, "")) for label, fits in of_series.items()) for each in self.series[name]
        ):
            raise InvalidQuery(
                f"no series of {name} has the values of {', '.join(sorted(of_series))} that are asked for"
            )
        return labels


def labels_of(expression: str, schema: Schema) -> frozenset[str]:
    """The labels of the series that the expression gives; none for a scalar. Raises `InvalidQuery`."""
    parser = _Parser(_tokens(expression), schema)
    labels = parser.expression()
    parser.take("end")
    return labels


def _tokens(expression: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at = 0
    while not tokens or tokens[-1][0] != "end":
        found = _TOKEN.match(expression, at)
        if found is None:
            raise InvalidQuery(f"unexpected text: {expression[at : at + 20]!r}")
        at = found.end()
        if (kind := found.lastgroup) is not None:
            tokens.append((kind, found[kind]))
    return tokens


class _Parser:
    """Recursive descent. Each method returns the labels of what it has read."""

    def __init__(self, tokens: list[tuple[str, str]], schema: Schema) -> None:
        self._tokens = tokens
        self._schema = schema
        self._at = 0

    def expression(self, level: int = 0) -> frozenset[str]:
        if level == len(_BY_PRECEDENCE):
            return self._operand()
        left = self.expression(level + 1)
        while self._next() in _BY_PRECEDENCE[level]:
            operator = self.take()
            self._accept("bool")
            on = self._label_list() if self._accept("on") else None
            group = self._label_list() if self._accept("group_left") else None
            right = self.expression(level + 1)
            left = _joined(operator, left, right, on, group)
        return left

    def take(self, kind: str | None = None, text: str | None = None) -> str:
        found_kind, found = self._tokens[self._at]
        if (kind is not None and kind != found_kind) or (text is not None and text != found):
            raise InvalidQuery(f"expected {text or kind}, got {found!r}")
        self._at += 1
        return found

    def _next(self, ahead: int = 0) -> str:
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)][1]

    def _accept(self, text: str) -> bool:
        if self._next() != text:
            return False
        self._at += 1
        return True

    def _operand(self) -> frozenset[str]:
        kind = self._tokens[self._at][0]
        if kind == "number":
            self.take()
            return frozenset()
        if self._accept("("):
            inner = self.expression()
            self.take(text=")")
            return inner
        name = self.take("name")
        if name in _AGGREGATIONS:
            return self._aggregation(name)
        if self._next() == "(":
            return self._call(name)
        return self._selector(name)

    def _aggregation(self, name: str) -> frozenset[str]:
        by = self._label_list() if self._accept("by") else None
        self.take(text="(")
        if name == "topk":
            self.take("number")
            self.take(text=",")
        inner = self.expression()
        self.take(text=")")
        if by is None:
            return inner if name == "topk" else frozenset()
        _require(by, inner, f"{name} by")
        return frozenset(by)

    def _call(self, name: str) -> frozenset[str]:
        self.take(text="(")
        if name == "time":
            self.take(text=")")
            return frozenset()
        if name == "histogram_quantile":
            self.take("number")
            self.take(text=",")
            inner = self.expression()
            _require(["le"], inner, name)
            inner -= {"le"}
        elif name == "label_replace":
            inner = self._label_replace()
        elif name in _OVER_TIME or name in _OF_VECTOR:
            inner = self.expression()
            if name in _OVER_TIME and self._tokens[self._at - 1][0] != "duration":
                raise InvalidQuery(f"{name} needs a range, for example [5m]")
            while self._accept(","):
                self.take("number")
        else:
            raise InvalidQuery(f"the function {name} is not known here")
        self.take(text=")")
        return inner

    def _label_replace(self) -> frozenset[str]:
        inner = self.expression()
        texts = []
        while self._accept(","):
            texts.append(self.take("string")[1:-1])
        target, _, source, _ = texts
        _require([source], inner, "label_replace")
        return inner | {target}

    def _selector(self, name: str) -> frozenset[str]:
        matchers: dict[str, Callable[[str], bool]] = {}
        if self._accept("{"):
            while not self._accept("}"):
                label, how = self.take("name"), self.take("operator")
                matchers[label] = _matcher(how, self.take("string")[1:-1])
                self._accept(",")
        if self._tokens[self._at][0] == "duration":
            self.take()
        if self._accept("offset"):
            self.take("number")
            self.take("name")
        return self._schema.labels(name, matchers)

    def _label_list(self) -> list[str]:
        self.take(text="(")
        found = []
        while not self._accept(")"):
            found.append(self.take("name"))
            self._accept(",")
        return found


def _joined(
    operator: str, left: frozenset[str], right: frozenset[str], on: list[str] | None, group: list[str] | None
) -> frozenset[str]:
    """The labels of ``left operator right``. Raises `InvalidQuery` if no series of both sides can match."""
    if on is not None:
        _require(on, left, f"left of {operator} on")
        _require(on, right, f"right of {operator} on")
    elif left and right and left != right and operator != "or":
        raise InvalidQuery(f"{operator} compares {', '.join(sorted(left))} with {', '.join(sorted(right))}: say on (…)")
    if operator in {"and", "unless"}:
        return left
    if operator == "or":  # each series has the labels of its side: a template tests for them
        return left | right
    if on is not None and group is None:
        return frozenset(on)
    return (left | frozenset(group or ())) if left else right


def _require(labels: Iterable[str], present: frozenset[str], what: str) -> None:
    for label in labels:
        if label not in present:
            raise InvalidQuery(f"{what}: there is no label {label}, there are {', '.join(sorted(present)) or 'none'}")


def _matcher(how: str, text: str) -> Callable[[str], bool]:
    pattern = re.compile(text) if "~" in how else re.compile(re.escape(text))
    negated = how.startswith("!")
    return lambda value: (pattern.fullmatch(value) is None) is negated


def labels_in_template(text: str) -> set[str]:
    """The labels that an annotation (``{{ $labels.x }}``) or a legend (``{{x}}``) names."""
    return set(re.findall(r"\$labels\.(\w+)", text)) | set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text)) - {"end"}


def schema_with(rules: Any, schema: Schema) -> Schema:
    """``schema`` with the series that the recording rules of a rules file make. Raises `InvalidQuery`."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                schema.recorded[rule["record"]] = labels_of(rule["expr"], schema)
    return schema
