"""The report's page in a real browser, without a display: its controls are clicked."""

import json
import shutil
import time
from itertools import pairwise

import pytest
from benchmark_tables import AGENTS, FACTS, tables

from personalllm_env.benchmark.page import render_page
from personalllm_env.testing import tiny_bank

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
LAPTOP, PHONE = (1366, 768), (390, 844)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--no-first-run", "--disable-dev-shm-usage"),
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver"),
]


@pytest.fixture(scope="module")
def tables_shown():
    return tables(3, users=25, seeds=3, horizon=12)


@pytest.fixture(scope="module")
def address(tables_shown, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_page(tables_shown, bank=tiny_bank(), facts=FACTS), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page at one width, and what tests do with it."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address

    def open(self, size=LAPTOP, fragment="", scheme="light"):
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        do = self.browser.execute_cdp_cmd
        do("Emulation.setDeviceMetricsOverride", metrics | {"mobile": width < 500})
        do("Emulation.setEmulatedMedia", media)
        self.browser.get("about:blank")  # else a new fragment would load nothing
        self.browser.get(self.address + fragment)
        return self

    def js(self, script, *arguments):
        return self.browser.execute_script(f"return ({script})", *arguments)

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def click(self, selector):
        self.js("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        self.find(selector).click()

    def hover(self, selector, x, y):
        """Moves the mouse to (x, y) within an element, from its upper left corner."""
        element = self.find(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        time.sleep(0.15)  # scrolling hides the tooltip
        box = self.js("arguments[0].getBoundingClientRect().toJSON()", element)
        at = {"type": "mouseMoved", "x": box["x"] + x, "y": box["y"] + y}
        self.browser.execute_cdp_cmd("Input.dispatchMouseEvent", at)
        time.sleep(0.05)

    def tip(self):
        return self.js("document.getElementById('tip').hidden ? '' : tip.textContent")

    def count(self, selector):
        return self.js("document.querySelectorAll(arguments[0]).length", selector)

    def names(self, selector):
        script = "[...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.js(script, selector)


@pytest.fixture
def page(browser, address):
    return Page(browser, address).open()


CURRENT = ".track.current"
CURVES = f"{CURRENT} [data-chart=curves]"


def number_of(page, name):
    return page.js(
        "[...document.querySelectorAll('.chips button')].find("
        "b => b.title === arguments[0]).dataset.agent",
        name,
    )


def test_it_loads_without_an_error_and_without_the_network(page):
    page.browser.get_log("browser"), page.browser.get_log("performance")  # of what was before
    page.open()
    for track in range(3):
        page.js("document.querySelectorAll('[role=tab]')[arguments[0]].click()", track)
    assert page.browser.get_log("browser") == []
    events = [json.loads(e["message"])["message"] for e in page.browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"]
        for e in events
        if e["method"] == "Network.requestWillBeSent"
    ]
    asked = [url for url in asked if not url.startswith(("data:", "about:"))]
    assert [url.split("#")[0] for url in asked] == [page.address]
    assert page.count("script") == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_nothing_makes_the_page_wider_than_the_screen(page, size, scheme):
    page.open(size, scheme=scheme)
    for track in range(3):
        page.js("document.querySelectorAll('[role=tab]')[arguments[0]].click()", track)
        # A laptop's scroll bar takes a part of the width.
        wide = page.js("[document.documentElement.scrollWidth, document.body.clientWidth]")
        assert wide[0] == wide[1] <= size[0]
    out = page.js(
        "[...document.querySelectorAll('svg text')].filter(t => {"
        "const b = t.getBoundingClientRect();"
        "return b.width && (b.left < -1 || b.right > innerWidth + 1);"
        "}).map(t => t.textContent)"
    )
    assert out == []
    ground = page.js("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_no_label_lies_on_another(page, size):
    page.open(size)
    boxes = page.js(
        f"[...document.querySelectorAll('{CURVES} .end text')].map(t => {{"
        "const b = t.getBoundingClientRect(); return [b.top + 2, b.bottom - 2]; })"
    )
    assert len(boxes) == len(AGENTS)
    assert all(above[1] <= below[0] for above, below in pairwise(sorted(boxes)))


def test_an_agent_is_switched_off_in_every_chart_and_on_again(page):
    who = number_of(page, "linucb")
    everywhere = [
        f"{CURRENT} [data-chart={chart}] [data-agent='{who}']"
        for chart in ("curves", "users", "shares", "cost0", "cost1")
    ]
    assert all(page.count(each) for each in everywhere)
    before = page.count(f"{CURVES} .curve")
    page.click(f".chips [data-agent='{who}']")
    assert [page.count(each) for each in everywhere] == [0] * 5
    assert page.count(f"{CURVES} .curve") == before - 1
    assert page.find(f".chips [data-agent='{who}']").get_attribute("aria-pressed") == "false"
    page.click("#tab-sparse-v0")
    assert page.count(f"{CURVES} [data-agent='{who}']") == 0  # the choice holds on other tracks
    page.click(f".chips [data-agent='{who}']")
    assert page.count(f"{CURVES} .curve") == before


def test_the_quick_choices(page, tables_shown):
    def quick(name):
        buttons = "[...document.querySelectorAll('.quick button')]"
        page.js(f"{buttons}.find(b => b.textContent === arguments[0]).click()", name)
        return page.count(f"{CURVES} .curve")

    standings = tables_shown[0].standings
    assert quick("none") == 0
    assert "No agent is chosen" in page.find(CURVES).text
    assert quick("honest") == sum(not s.privileges for s in standings)
    assert quick("leaders") == sum(s.tied for s in standings)
    assert quick("all") == len(standings)


def test_a_line_is_read_where_the_mouse_is(page, tables_shown):
    who = number_of(page, "oracle")
    page.js("[...document.querySelectorAll('.quick button')][1].click()")  # none
    page.click(f".chips [data-agent='{who}']")
    page.hover(f"{CURVES} svg", 300, 100)
    first, second = page.tip().split("\n")
    assert first == "oracle *"
    assert second.startswith("interaction ")
    assert second.endswith(": 1.000 \N{PLUS-MINUS SIGN} 0.000")
    assert page.count(f"{CURVES} .curve.on") == 1
    page.hover("h1", 2, 2)
    assert page.tip() == ""
    assert page.count(f"{CURRENT} .on") == 0


def test_the_nearest_line_is_named_with_its_value(page, tables_shown):
    from personalllm_env.benchmark.page_data import learning_curves

    page.hover(f"{CURVES} svg", 500, 150)
    name, words = page.tip().split("\n")
    at, value = words.removeprefix("interaction ").split(": ")
    middle, half = learning_curves(tables_shown[0].runs)["gain"][name.removesuffix(" *")]
    marks = page.js(
        f"[...document.querySelectorAll('{CURVES} svg > text[text-anchor=end]')].map(t =>"
        "[Number(t.textContent.replace('\u2212', '-')), Number(t.getAttribute('y')) - 4])"
    )
    (low, bottom), (high, top) = marks[0], marks[-1]
    pointed = low + (bottom - 150) * (high - low) / (bottom - top)
    curves = learning_curves(tables_shown[0].runs)["gain"].values()
    nearest = min(abs(curve.middle[int(at) - 1] - pointed) for curve in curves)
    assert abs(middle[int(at) - 1] - pointed) == pytest.approx(nearest, abs=0.01)
    expected = f"{middle[int(at) - 1]:.3f} \N{PLUS-MINUS SIGN} {half[int(at) - 1]:.3f}"
    assert value == expected.replace("-", "\N{MINUS SIGN}")


def test_the_chart_is_read_with_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    chart = page.find(f"{CURVES} svg")
    page.js("arguments[0].scrollIntoView({block: 'center'})", chart)
    time.sleep(0.15)
    page.js("arguments[0].focus()", chart)
    chart.send_keys(Keys.ARROW_RIGHT)
    one = page.tip()
    assert "interaction 2:" in one
    chart.send_keys(Keys.ARROW_DOWN)
    other = page.tip()
    assert "interaction 2:" in other
    assert one.split("\n")[0] != other.split("\n")[0]
    chart.send_keys(Keys.ESCAPE)
    assert page.tip() == ""


def column(page, index):
    cells = f"{CURRENT} .standings tbody:not(.privileged) tr > :nth-child({index})"
    return page.js("[...document.querySelectorAll(arguments[0])].map(c => c.dataset.v)", cells)


def test_the_table_is_sorted_by_click_and_by_key(page):
    from selenium.webdriver.common.keys import Keys

    head = f"{CURRENT} .standings thead th:nth-child"
    gains = [float(x) for x in column(page, 2)]
    assert gains == sorted(gains, reverse=True)
    page.click(f"{head}(2) button")
    assert [float(x) for x in column(page, 2)] == sorted(gains)
    assert page.find(f"{head}(2)").get_attribute("aria-sort") == "ascending"
    page.find(f"{head}(1) button").send_keys(Keys.ENTER)
    names = column(page, 1)
    assert page.js("[...arguments[0]].sort((a, b) => a.localeCompare(b))", names) == names
    assert page.find(f"{head}(2)").get_attribute("aria-sort") is None
    regret = page.js(
        "[...document.querySelectorAll(arguments[0])].findIndex("
        "h => h.textContent.trim() === 'regret') + 1",
        f"{CURRENT} .standings th[scope=col]",
    )
    page.click(f"{head}({regret}) button")  # less is better, so the least comes first
    found = [float(x) for x in column(page, regret)]
    assert found == sorted(found)
    memory = page.count(f"{CURRENT} .standings thead th")
    page.click(f"{head}({memory}) button")
    assert column(page, memory)[-1] == ""  # not measured: last, whichever way
    page.click(f"{head}({memory}) button")
    assert column(page, memory)[-1] == ""


def test_tracks_are_reached_by_tab_key_column_and_address(page):
    from selenium.webdriver.common.keys import Keys

    def shown():
        return page.js(
            "[...document.querySelectorAll('.track')].filter("
            "s => s.getClientRects().length).map(s => s.id)"
        )

    assert shown() == ["cold-start-v0"]
    page.click("#tab-duels-v0")
    assert shown() == ["duels-v0"]
    assert page.find("#tab-duels-v0").get_attribute("aria-selected") == "true"
    page.find("#tab-duels-v0").send_keys(Keys.ARROW_LEFT)
    assert shown() == ["sparse-v0"]
    page.click(".overview th a[href='#cold-start-v0']")
    assert shown() == ["cold-start-v0"]
    page.open(fragment="#duels-v0")
    assert shown() == ["duels-v0"]
    assert page.js("document.getElementById('tracks').getBoundingClientRect().top < 120")


def test_the_curves_show_gain_score_or_regret(page):
    def axis():
        return page.names(f"{CURVES} svg > text[text-anchor=end]")

    seen = [axis()]
    for kind in ("score", "regret"):
        page.click(f"{CURRENT} [data-kind={kind}]")
        assert (
            page.find(f"{CURRENT} [data-kind={kind}]").get_attribute("aria-pressed") == "true"
        )
        seen.append(axis())
    assert seen[0] != seen[1] != seen[2]
    assert "summed per user" in page.find(f"{CURRENT} figcaption .what").text


def test_the_users_are_read_by_hovering(page):
    who = number_of(page, "oracle")
    page.hover(f"{CURRENT} [data-chart=users] [data-agent='{who}'] rect", 150, 8)
    assert page.tip().startswith("oracle *\nmedian 0.00, mean 0.00")
    assert "worst tenth: mean 0.00" in page.tip()


def test_the_banks_panels_are_drawn(page):
    assert page.count("[data-bank=top] .line") == 3
    assert page.count("[data-bank=top] circle") == 9
    assert page.count("[data-bank=winners] rect") == 15
    assert page.count("[data-bank=wins] rect") == 3 * tiny_bank().num_responses
    page.hover("[data-bank=winners] rect", 3, 3)
    assert page.tip().startswith(
        "\N{LESS-THAN OR EQUAL TO} 2 winners, Dirichlet 0.01\nthis bank "
    )


def test_print_has_every_track(page):
    page.js("dispatchEvent(new Event('beforeprint'))")
    shown = (
        "[...document.querySelectorAll('.track')].filter(s => s.getClientRects().length).length"
    )
    assert page.js(shown) == 3
    assert page.count("[data-chart=curves] .curve") == 3 * len(AGENTS)
    page.js("dispatchEvent(new Event('afterprint'))")
    assert page.js(shown) == 1
