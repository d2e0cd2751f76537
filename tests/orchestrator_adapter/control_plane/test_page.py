"""The live page in a browser, drawn from documents made by hand: names, keys, colours, safety, and what it says of faults."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from orchestrator_adapter.control_plane.pages import page_files
from tests.helpers.browser import Browser, Page, headless, needs_chromium
from tests.helpers.page_scenes import HOSTILE, SCENES, SceneServer, serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with headless() as started:
        yield started


@pytest.fixture(scope="module")
def server() -> Iterator[SceneServer]:
    with serving(SCENES["healthy"]) as started:
        yield started


@pytest.fixture
def show(browser: Browser, server: SceneServer) -> Iterator[Any]:
    """Opens the page of a scene. No page may load anything from elsewhere, break its policy, or log an error."""
    opened: list[Page] = []
    server.silent.clear()
    server.end = None

    def show(scene: str, *, fragment: str = "", **look: Any) -> Page:
        server.scene = SCENES[scene]
        page = browser.open(server.url + fragment, **look)
        opened.append(page)
        page.wait_for("document.querySelector('[data-operator][data-state]')")
        return page

    yield show
    for page in opened:
        page.evaluate("0")
        elsewhere = [url for url in page.requests if not url.startswith((server.url, "data:"))]
        assert elsewhere == []
        assert [
            error for error in page.errors if "ERR_" not in error
        ] == []  # a stream that ends is no fault of the page
        page.close()


def test_every_file_of_the_page_is_in_the_package_with_its_licences() -> None:
    files = page_files()
    assert {"index.html", "style.css", "main.js", "vendor/htm-preact.js"} <= set(files)
    assert {"vendor/LICENSE-htm", "vendor/LICENSE-preact", "vendor/README.md"} <= set(files)
    ours = {name: body.decode() for name, body in files.items() if not name.startswith("vendor/")}
    assert not [name for name, text in ours.items() if "innerHTML" in text or "eval(" in text]


@needs_chromium
def test_a_bottleneck_is_named_with_its_reason_and_marked_in_the_topology(show: Any) -> None:
    page = show("bottleneck")
    page.wait_for(
        "document.querySelector('.headline').innerText.startsWith(\"'dedup' is the bottleneck: busy for 98 %\")"
    )
    marked = "[...document.querySelectorAll('[data-bottleneck=true]')].map(each => each.dataset.operator)"
    assert page.evaluate(marked) == ["dedup"]
    assert page.evaluate("document.querySelector('[data-health=ok]').innerText") == "health: ok"
    pressure = "document.querySelector('[data-edge=\"{}\"]').dataset.pressure"
    assert page.evaluate(pressure.format("validate -> dedup")) == "high"
    assert page.evaluate(pressure.format("dedup -> log")) == "none"
    tiles = page.evaluate("[...document.querySelectorAll('.tile .answer')].map(each => each.innerText.trim())")
    assert tiles == ["! dedup", "✓ none", "✓ nothing", "21 ms"]


@needs_chromium
def test_idle_thread_pools_are_one_line_that_opens(show: Any) -> None:
    page = show("healthy")
    pools = "document.querySelector('#pools').innerText"
    assert "2 thread pools are idle" in page.evaluate(pools)
    assert "alerts" not in page.evaluate(pools)
    page.click("#pools summary")
    page.wait_for(f"{pools}.includes('alerts 0 of 2 threads busy')")


@needs_chromium
def test_a_screen_reader_has_names_and_states_of_operators_and_hears_the_headline_only_when_its_meaning_changes(
    show: Any, server: SceneServer
) -> None:
    page = show("bottleneck")
    nodes = page.accessibility()
    buttons = {node.name for node in nodes if node.role == "button"}
    assert {"dedup, operator, running, bottleneck", "radar, source, running"} <= buttons
    assert "edge validate -> dedup, high pressure" in buttons
    assert {"Topology", "Ledger"} <= {node.name.split(" ")[0].rstrip(":,") for node in nodes if node.role == "region"}
    live = [node.name for node in nodes if node.role == "status"]
    assert len(live) == 1
    page.evaluate(
        "window.said = []; new MutationObserver(() => said.push(document.querySelector('[role=status]').innerText))"
        ".observe(document.querySelector('[role=status]'), {characterData: true, childList: true, subtree: true})"
        " || null"
    )
    server.scene = SCENES["stalled"]  # its seconds grow with each document
    page.wait_for("document.querySelector('[data-banner=stalled]')")
    first = page.evaluate("document.querySelector('.headline').innerText")
    page.wait_for(f"document.querySelector('.headline').innerText !== {json.dumps(first)}")
    assert len(page.evaluate("said")) == 1
    assert page.evaluate("said")[0].startswith("The event loop has not answered for")


@needs_chromium
def test_the_keyboard_walks_along_the_edges_opens_the_details_and_returns(show: Any) -> None:
    page = show("bottleneck")
    page.evaluate("document.querySelector('[data-operator=radar][data-state]').focus()")
    walked = []
    for _ in range(4):
        page.press("ArrowRight")
        walked.append(page.evaluate("document.activeElement.dataset.id"))
    assert walked == [
        "edge=radar -> normalize",
        "operator=normalize",
        "edge=normalize -> validate",
        "operator=validate",
    ]
    page.press("Enter")
    page.wait_for("document.activeElement.id === 'details-title'")
    assert page.evaluate("decodeURIComponent(location.hash)") == "#operator=validate"
    assert page.evaluate("document.querySelector('[data-details]').dataset.details") == "validate"
    page.press("Escape")
    page.wait_for("!document.querySelector('[data-details]')")
    assert page.evaluate("document.activeElement.dataset.id") == "operator=validate"
    assert page.evaluate("location.hash") == ""


@needs_chromium
def test_the_address_selects_an_operator_and_its_dead_letters_are_read(show: Any) -> None:
    page = show("bottleneck", fragment="#operator=dedup")
    page.wait_for("document.querySelectorAll('[data-letter]').length === 20")
    text = page.evaluate("document.querySelector('[data-details]').innerText")
    assert "The newest 20 of 25" in text
    assert "Bottleneck." in text


@needs_chromium
def test_names_and_messages_of_the_run_are_text_and_never_markup(show: Any) -> None:
    page = show("hostile")
    page.click("[data-bottleneck=true]")
    page.wait_for("document.querySelectorAll('[data-letter]').length === 20")
    assert page.evaluate("document.querySelectorAll('#app img').length") == 0
    assert page.evaluate("document.title") != "owned"
    assert page.evaluate("document.querySelector('#details-title').innerText") == HOSTILE


@needs_chromium
@pytest.mark.parametrize("scene", ["bottleneck", "restarting", "stalled"])
@pytest.mark.parametrize("dark", [False, True])
def test_every_text_has_a_contrast_of_at_least_four_and_a_half(show: Any, scene: str, dark: bool) -> None:  # noqa: FBT001 - a parameter
    """WCAG 2.2, success criterion 1.4.3, with the relative luminance of its glossary."""
    page = show(scene, dark=dark)
    assert page.evaluate(_CONTRAST) == []


@needs_chromium
def test_on_a_phone_the_page_does_not_scroll_sideways_and_the_bottleneck_is_in_sight(show: Any) -> None:
    page = show("fusion-bottleneck", width=390, height=844, mobile=True)
    page.wait_for("document.querySelector('.topology').scrollLeft > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = "document.querySelector('[data-bottleneck=true]').getBoundingClientRect()"
    assert page.evaluate(f"{box}.left") >= 0
    assert page.evaluate(f"{box}.right") <= 390


@needs_chromium
def test_an_action_is_confirmed_in_words_and_sends_the_token(show: Any, server: SceneServer) -> None:
    assert show("healthy").evaluate("document.querySelectorAll('.action').length") == 0
    page = show("bottleneck")
    page.click(".head .action")
    assert "This cannot be undone" in page.evaluate("document.querySelector('dialog').innerText")
    page.evaluate("document.querySelector('dialog input').focus()")
    page.type("a secret of 16 characters")
    page.press("Enter")
    page.wait_for("document.querySelector('dialog').innerText.includes('Done: the run drains')")
    assert server.actions == [("/actions/drain", "Bearer a secret of 16 characters")]


@needs_chromium
def test_a_server_that_is_gone_is_reported_and_the_page_connects_again_and_says_how_the_run_ended(
    show: Any, server: SceneServer
) -> None:
    page = show("healthy")
    server.silent.set()
    page.wait_for("document.querySelector('[data-banner=disconnected]')")
    assert page.evaluate("document.querySelector('[data-health]').dataset.health") == "unknown"
    server.silent.clear()
    page.wait_for("!document.querySelector('[data-banner]')")
    server.end = {
        "outcome": "BudgetExhausted",
        "text": "operator 'log' failed more often than its restart policy admits",
    }
    page.wait_for("document.querySelector('[data-banner=ended]')")
    assert page.evaluate("document.querySelector('.headline').innerText").startswith(
        "The run has ended: operator 'log' failed"
    )


@needs_chromium
def test_every_edge_of_the_drawing_leads_to_the_right_and_no_operator_covers_another(show: Any) -> None:
    page = show("fusion")
    boxes = page.evaluate(
        "[...document.querySelectorAll('[data-operator][data-state] .box')].map(each => each.getBoundingClientRect())"
        ".map(({left, right, top, bottom}) => [left, right, top, bottom])"
    )
    assert len(boxes) == 25
    for one, other in pairwise(sorted(boxes)):
        assert one[1] < other[0] or one[3] <= other[2] or other[3] <= one[2]
    back = page.evaluate(
        "[...document.querySelectorAll('[data-edge] .line')]"
        ".filter(each => each.getPointAtLength(0).x >= each.getPointAtLength(each.getTotalLength()).x).length"
    )
    assert back == 0


_CONTRAST = """(() => {
    const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
    const luminance = ([r, g, b]) => {
        const [R, G, B] = [r, g, b].map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * R + 0.7152 * G + 0.0722 * B;
    };
    const behind = (element) => {
        if (element instanceof SVGElement && element.tagName !== "svg") {
            const group = element.closest(".node");
            const box = element.classList.contains("badge-text") ? group.querySelector(".badge")
                : element.classList.contains("note") ? null : group?.querySelector(".box");
            if (box) return parse(getComputedStyle(box).fill);
        }
        for (let at = element; at; at = at.parentElement) {
            const colour = parse(getComputedStyle(at).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const grey = (element, colour) => element.closest(".stale .card, .stale .tile:not(.current)")
        ? Array(3).fill(0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]) : colour;
    const low = new Set();
    const all = document.createTreeWalker(document.querySelector("#app"), NodeFilter.SHOW_TEXT);
    while (all.nextNode()) {
        const element = all.currentNode.parentElement;
        if (!all.currentNode.data.trim() || ["TITLE", "title"].includes(element.tagName)) continue;
        const style = getComputedStyle(element);
        const fore = grey(element, parse(element instanceof SVGElement ? style.fill : style.color));
        const pair = [luminance(fore), luminance(grey(element, behind(element)))].sort((a, b) => b - a);
        const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (ratio < 4.5) low.add(`${element.getAttribute("class") ?? element.tagName} ${ratio.toFixed(2)}`);
    }
    return [...low];
})()"""
