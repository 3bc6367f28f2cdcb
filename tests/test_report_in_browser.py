"""The report in Chromium: what it shows is what the plan says, by mouse and by keyboard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_report import BASE, NAMES, awkward, none_alike, ten_thousand
from torch import nn

from freezekit import FreezePlan, ResolvedPlan

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
for needed, found in (
    ("Chromium", CHROMIUM),
    ("chromedriver", DRIVER),
    ("selenium", find_spec("selenium")),
):
    if not found:
        pytest.skip(f"{needed} is not installed here; .ci/run installs it", allow_module_level=True)
webdriver: Any = import_module("selenium.webdriver")
Service: Any = import_module("selenium.webdriver.chrome.service").Service
WebDriverWait: Any = import_module("selenium.webdriver.support.wait").WebDriverWait
Keys: Any = import_module("selenium.webdriver.common.keys").Keys

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--window-size=1280,2400",
)


TIMES, EN_DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"


class Browser:
    """A headless Chromium with a report in it."""

    def __init__(self, driver: Any, folder: Path) -> None:  # noqa: ANN401
        self.driver = driver
        self.folder = folder

    def show(
        self,
        resolved: ResolvedPlan,
        fragment: str = "",
        *,
        dark: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> None:
        """Opens a new report."""
        path = self.folder / "plan.html"
        resolved.save_html(path, **options)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")
        self.logs()
        self.driver.get(f"{path.as_uri()}{fragment}")

    def run(self, script: str, *arguments: Any) -> Any:  # noqa: ANN401
        """Returns what JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def one(self, selector: str) -> Any:  # noqa: ANN401
        """Returns the element of a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """Returns the text of an element, as it is in the document."""
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def type(self, text: str) -> None:
        """Types a search anew."""
        self.one("#query").clear()
        self.one("#query").send_keys(text)

    def pick(self, select: str, value: str) -> None:
        """Chooses an option of a filter."""
        self.one(f"#{select} option[value='{value}']").click()

    def lines(self) -> dict[str, dict[str, str]]:
        """Returns the cells of the lines in the tree, by path."""
        return {
            path: dict(zip(("class", "count", "live", "state", "mode", "rate"), cells, strict=True))
            for path, *cells in self.run(
                "return [...document.querySelectorAll('#tree .row')].map(line =>"
                " [pathOf(line.node), ...[...line.children].slice(1).map(c => c.textContent)])"
            )
        }

    def focused(self) -> str:
        """Returns the path of the line in focus."""
        return str(self.run("return pathOf(document.activeElement.node)"))

    def press(self, *keys: str) -> None:
        """Presses keys where the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def select(self, path: str) -> None:
        """Clicks on the line of a path."""
        self.run(
            "const [path] = arguments; [...document.querySelectorAll('#tree .row')]"
            ".find(line => pathOf(line.node) === path).querySelector('.class').click()",
            path,
        )

    def opening(self) -> float:
        """Returns the milliseconds that opening the page takes, the least of three tries."""
        timing = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
        tries = []
        for _ in range(3):
            self.driver.refresh()
            tries.append(self.run(timing))
        return float(min(tries))

    def wait(self, script: str) -> None:
        """Waits until what JavaScript returns is true."""
        WebDriverWait(self.driver, 10, 0.05).until(lambda _: self.run(script))

    def logs(self) -> tuple[list[str], list[str]]:
        """Returns the messages of the console and the addresses asked for since the last call."""
        messages = [each["message"] for each in self.driver.get_log("browser")]
        logged = self.driver.get_log("performance")
        events = [json.loads(each["message"])["message"] for each in logged]
        asked = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        return messages, asked


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One Chromium for all tests, ended with them."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(DRIVER))
    made.set_page_load_timeout(60)
    made.set_script_timeout(60)
    yield made
    made.quit()


@pytest.fixture
def browser(driver: Any, tmp_path: Path) -> Iterator[Browser]:  # noqa: ANN401
    """The browser; afterwards, nothing was complained about and nothing but the file asked for."""
    made = Browser(driver, tmp_path)
    yield made
    messages, asked = made.logs()
    assert messages == []
    assert all(url.startswith(("file://", "about:")) for url in asked), asked


def model() -> nn.Module:
    """Three layers with a dropout each, a tied pair and a norm without parameters."""
    layers = (
        nn.ModuleDict({"dense": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "drop": nn.Dropout()})
        for _ in range(3)
    )
    embed, out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    out.weight = embed.weight
    return nn.ModuleDict(
        {
            "embed": embed,
            "layers": nn.ModuleList(layers),
            "bare": nn.BatchNorm1d(4, affine=False),
            "out": out,
            "head": nn.Linear(4, 2),
        }
    )


PLAN = (
    FreezePlan()
    .freeze("embed")
    .freeze("layers")
    .unfreeze("layers[-1]", lr=1e-3, at_epoch=1)
    .unfreeze("layers[1].dense.weight", rows="2:", lr_mult=0.1, at_epoch=3)
    .unfreeze("layers[1].dense.bias", at_epoch=3)
    .freeze("bare", "head.bias", until_epoch=2)
    .no_decay()
)


def plan() -> ResolvedPlan:
    """Four phases of the plan on the model."""
    return PLAN.resolve(model())


def test_every_phase_shows_what_the_plan_says(browser: Browser) -> None:
    """Stepping through the phases, state, rate, counts and modes are those of the plan."""
    resolved = plan()
    browser.show(resolved, base_lr=BASE)
    browser.one("#expand").click()
    assert len(resolved.phases) == 4
    for phase in resolved.phases:
        lines = browser.lines()
        assert browser.text("#phase") == f"Phase {phase.index + 1} of 4: {phase}"
        for row in resolved.rows:
            decision = row.decisions[phase.index]
            state = "partial" if decision.rows else "trainable"
            state = state if row.name in phase.trainable else "frozen"
            assert lines[row.name]["state"] == state
            rate = f"{phase.lr(row.name, BASE):g}" if state != "frozen" else ""
            assert lines[row.name]["rate"] == rate
        for module in resolved._module_rows(phase):
            line = lines[module.path]
            shown = {"none": "-"}.get(module.state, module.state)
            assert (line["class"], line["state"]) == (module.class_name, shown)
            assert (line["count"], line["live"]) == (f"{module.numel:,}", f"{module.trainable:,}")
            assert line["mode"] == ("eval (held)" if module.held else "train")
        assert browser.text("#line") == resolved.summary(epoch=phase.start).line
        browser.one("#next").click()
    assert browser.one("#next").get_attribute("aria-disabled") == "true"


@pytest.mark.parametrize(
    ("network", "rules", "said"),
    [
        (nn.Sequential(nn.Linear(2, 2)), FreezePlan(), "The plan has no rules."),
        (nn.ReLU(), FreezePlan(allow_all_frozen=True), "The model has no parameters."),
        (nn.Linear(2, 2), FreezePlan().freeze("bias"), "1 parameter: rule 1, freeze('bias')"),
    ],
    ids=["no rules", "no parameters", "no moments"],
)
def test_little_is_shown_too(
    browser: Browser, network: nn.Module, rules: FreezePlan, said: str
) -> None:
    """Where there is no rule, parameter or moment, the page says so, and the rest works."""
    resolved = rules.resolve(network)
    browser.show(resolved)
    assert browser.text("#phase") == str(resolved.phases[0])
    assert browser.text("#line") == resolved.summary().line
    browser.one("#expand").click()
    assert list(browser.lines()) == [""] + [path for path, _ in network.named_children()] + [
        row.name for row in resolved.rows
    ]
    browser.select("")
    assert said in browser.text("main")
    browser.one("body").send_keys(Keys.ARROW_RIGHT)
    assert browser.text("#phase") == str(resolved.phases[0])


def test_timeline_is_the_grid(browser: Browser) -> None:
    """Each cell says what its layer does, and the frontier stands where backward stops."""
    browser.show(plan(), base_lr=BASE)
    rows = browser.run(
        "return [...document.querySelectorAll('#timeline tbody tr')].map(row => [...row.cells]"
        ".map(cell => cell.className + '|' + (cell.firstChild.textContent || cell.textContent)))"
    )
    assert [[cell.split("|")[0] for cell in row[2:]] for row in rows] == [
        ["cell frozen now", "cell frozen", "cell frozen", "cell frozen"],
        ["cell frozen now", "cell frozen", "cell frozen", "cell frozen"],
        ["cell frozen now", "cell frozen", "cell frozen", "cell partial stop"],
        ["cell frozen now", "cell trainable stop", "cell trainable stop", "cell trainable"],
        ["cell partial stop now", "cell partial", "cell trainable", "cell trainable"],
    ]
    assert [cell.split("|")[1] for cell in rows[3]][2:] == ["frozen", "0.001", "0.001", "0.001"]
    browser.run("document.querySelectorAll('#timeline tbody td.cell')[2].click()")
    assert browser.text("#phase").startswith("Phase 3 of 4")
    assert browser.text("#cost tr.now th").startswith("3: epoch 2")


def test_rates_without_a_base_are_multipliers(browser: Browser) -> None:
    """Where rules set rates and no base is given, cells say multipliers, in their own colour."""
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    rules = FreezePlan().group("[0]", lr_mult=0.1).group("[1].bias", lr=1e-4)
    resolved = rules.freeze("[2].bias").resolve(network)
    cells = (
        "return [...document.querySelectorAll('#timeline tbody td.cell')].map(cell =>"
        " [cell.textContent.replace('backward stops here', ''), cell.matches('.unscaled'),"
        " getComputedStyle(cell).backgroundColor])"
    )
    browser.show(resolved)
    texts, unscaled, fills = zip(*browser.run(cells), strict=True)
    assert texts == (f"{TIMES}0.1", f"1e-4, {TIMES}1", f"partial {TIMES}1")
    assert unscaled == (True, True, True)
    legend = "return getComputedStyle(document.querySelector('#unscaled .swatch')).backgroundColor"
    assert set(fills) == {browser.run(legend)}
    assert browser.one("#unscaled").text == "no base_lr: multiplier"
    browser.show(resolved, base_lr=1e-2)
    texts, unscaled, _ = zip(*browser.run(cells), strict=True)
    assert texts == ("0.001", f"1e-4{EN_DASH}0.01", "partial 0.01")
    assert unscaled == (False, False, False)
    assert browser.run(legend) not in {each for _, _, each in browser.run(cells)}
    assert not browser.one("#unscaled").is_displayed()
    browser.show(FreezePlan().group("[0]", lr_mult=0.1).resolve(network))
    assert [text for text, _, _ in browser.run(cells)] == [f"{TIMES}0.1", f"{TIMES}1", f"{TIMES}1"]
    assert not browser.one("#unscaled").is_displayed()


def test_an_order_that_is_not_known_is_noted(browser: Browser) -> None:
    """Beside the timeline stands what is not known of the order of the layers, if anything."""
    network = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("left", "right")})
    resolved = FreezePlan().freeze("left").resolve(network)
    assert resolved.layers.notes
    browser.show(resolved)
    said = browser.one("#order").text
    assert all(note in said for note in resolved.layers.notes)
    assert "FreezePlan(layers=...)" in said
    known = FreezePlan(layers={"stem": "left", "head": "right"}).freeze("left").resolve(network)
    assert not known.layers.notes
    browser.show(known)
    assert browser.text("#order") == ""


def test_a_link_opens_its_phase(browser: Browser) -> None:
    """The address names the phase: it opens there, follows it, and is bounded by what exists."""
    browser.show(plan(), "#phase=2")
    assert browser.text("#phase").startswith("Phase 2 of 4")
    browser.one("#next").click()
    browser.wait("return location.hash === '#phase=3'")
    browser.run("location.hash = '#phase=99'; dispatchEvent(new HashChangeEvent('hashchange'))")
    assert browser.text("#phase").startswith("Phase 4 of 4")


def test_the_address_stays_where_no_step_was_taken(browser: Browser) -> None:
    """The page writes no phase into the address it is opened with."""
    for fragment in ("", "#phase=2"):
        browser.show(plan(), fragment)
        browser.run("return new Promise(done => setTimeout(done, 300))")
        assert browser.run("return location.hash") == fragment


def test_the_page_works_in_a_frame(browser: Browser) -> None:
    """A frame may have no address that can be written: the page is there, and steps."""
    browser.show(plan())
    page = (browser.folder / "plan.html").read_text(encoding="utf-8")
    frame = browser.folder / "frame.html"
    frame.write_text(f'<iframe srcdoc="{escape(page)}"></iframe>', encoding="utf-8")
    browser.driver.get(frame.as_uri())
    browser.driver.switch_to.frame(0)
    assert "head" in browser.lines()
    browser.run("document.getElementById('next').click()")
    browser.run("return new Promise(done => setTimeout(done, 300))")
    assert browser.text("#phase").startswith("Phase 2 of 4")
    assert "head" in browser.lines()
    browser.driver.switch_to.default_content()


def test_the_address_is_not_written_for_every_step(browser: Browser) -> None:
    """Many steps in a row write it once: browsers refuse more than some in a time."""
    browser.show(plan())
    browser.run(
        "window.written = 0; const write = history.replaceState.bind(history);"
        "history.replaceState = (...all) => { window.written++; write(...all); };"
        "for (let step = 0; step < 500; step++) go(step % 4);"
    )
    browser.wait("return location.hash === '#phase=4'")
    assert browser.run("return window.written") == 1


def test_filters_say_what_the_tree_shows_after_back(browser: Browser) -> None:
    """Who comes back to the page finds filters that hold, or none."""
    browser.show(plan())
    every = len(browser.lines())
    browser.run("document.getElementById('state').value = 'frozen'; filter()")
    browser.type("norm")
    browser.run("for (const each of document.querySelectorAll('select')) each.selectedIndex = 1")
    browser.driver.get("about:blank")
    browser.driver.back()
    browser.wait("return document.readyState === 'complete'")
    shown = browser.run(
        "return ['query', 'state', 'rule'].map(id => document.getElementById(id).value)"
    )
    assert (shown == ["", "", ""]) is (len(browser.lines()) == every)


def test_a_rule_shows_what_it_decides(browser: Browser) -> None:
    """A click on a rule leaves nothing of other filters, and Clear nothing of any."""
    other = PLAN.freeze("layers[0].norm", "head", until_epoch=2).resolve(model())
    browser.show(plan(), "#phase=4", other=other)
    filters = (
        "return [...document.querySelectorAll('#query, .filters select')].map(each => each.value)"
        ".concat(document.getElementById('differs').checked)"
    )
    empty = browser.run(filters)
    browser.type("norm")
    browser.pick("rule", "1")
    browser.pick("how", "overridden")
    browser.run("document.getElementById('state').value = 'frozen'; filter()")
    browser.one("#differs").click()
    browser.one("#rules li:nth-child(2) button").click()
    assert browser.run(filters) == ["", "", "2", "decides", False]
    said = browser.text("#rules li:nth-child(2) .said").split(",")[0]
    assert (
        said == " decides something for " + browser.text("#found").split(" of")[0] + " parameters"
    )
    browser.pick("how", "overridden")
    browser.one("#clear").click()
    assert browser.run(filters) == empty == ["", "", "", "decides", False]


def test_stepping_keeps_the_folding(browser: Browser) -> None:
    """A step under a filter opens only what was not there before."""
    browser.show(plan(), "#phase=2")
    browser.type("norm")
    browser.one("#collapse").click()
    assert set(browser.lines()) == {"", "layers"}
    browser.one("#next").click()
    assert set(browser.lines()) == {"", "layers"}
    browser.type("dense")
    assert "layers.0.dense.weight" in browser.lines()
    browser.one("#clear").click()
    browser.run("document.getElementById('state').value = 'trainable'; filter()")
    browser.one("#next").click()
    assert "layers.1.dense.bias" in browser.lines()


def test_search_narrows_the_tree(browser: Browser) -> None:
    """Only what holds the text stays, with what stands above it, and the counts say how much."""
    resolved = plan()
    browser.show(resolved)
    browser.type("NORM")
    wanted = [row.name for row in resolved.rows if "norm" in row.name]
    lines = browser.lines()
    assert [path for path in lines if path.endswith(("weight", "bias"))] == wanted
    assert set(lines) == {"", "layers", *wanted} | {
        f"layers.{each}{rest}" for each in range(3) for rest in ("", ".norm")
    }
    assert browser.text("#found") == "6 of 15 parameters, 3 of 18 modules"
    browser.type("drop")
    assert browser.text("#found") == "0 of 15 parameters, 3 of 18 modules"
    browser.type("nothing of the kind")
    assert browser.lines() == {}
    browser.one("#clear").click()
    assert "head" in browser.lines()


@pytest.mark.parametrize(
    "pattern",
    [
        "layers.1",
        "layers.*.norm",
        "**.bias",
        "layers.{0..1}.dense",
        "h*",
        "*e*",
        "layers.?.{dense,norm}",
    ],
)
def test_patterns_select_as_in_a_plan(browser: Browser, pattern: str) -> None:
    """A search with `*`, `?` or braces finds what a rule with that pattern selects."""
    browser.show(plan())
    browser.one("#query").send_keys(pattern if set(pattern) & set("*?{") else f"{pattern}.**")
    selected = FreezePlan(allow_all_frozen=True).freeze(pattern).resolve(model()).at().frozen
    names = {row.name for row in plan().rows}
    assert set(browser.lines()) & names == selected


def test_filters_follow_state_and_rule(browser: Browser) -> None:
    """By state, by the rule that decides and by the rule that is overridden; all in the phase."""
    resolved = plan()
    names = {row.name for row in resolved.rows}
    browser.show(resolved, "#phase=2")
    phase = resolved.phases[1]
    browser.pick("state", "")
    browser.run("document.getElementById('state').value = 'frozen'; filter()")
    assert set(browser.lines()) & names == phase.frozen
    browser.type("dense")
    assert set(browser.lines()) & names == {name for name in phase.frozen if "dense" in name}
    browser.one("#clear").click()
    for how in ("decides", "overridden"):
        browser.pick("rule", "2")
        browser.pick("how", how)
        reasons = {n: [r for r in resolved.explain(n).reasons if r.phase == 1] for n in names}
        expected = {
            name
            for name, listed in reasons.items()
            if any(r.rule == 2 if how == "decides" else 2 in r.overridden for r in listed)
        }
        assert set(browser.lines()) & names == expected != set()


def test_why_says_what_explain_says(browser: Browser) -> None:
    """For every parameter the text is that of `explain`, and the table has the phase's reasons."""
    resolved = plan()
    browser.show(resolved, "#phase=2")
    browser.one("#expand").click()
    for row in resolved.rows:
        browser.select(row.name)
        explanation = resolved.explain(row.name)
        assert browser.text("#why pre") == str(explanation)
        table = browser.run(
            "return [...document.querySelectorAll('.reasons tbody tr')].map(row =>"
            " [row.cells[0].textContent, row.cells[1].textContent, row.cells[2].textContent])"
        )
        reasons = [each for each in explanation.reasons if each.phase == 1]
        assert [(key, value) for key, value, _ in table] == [(r.key, str(r.value)) for r in reasons]
    browser.select("layers.2.dense.weight")
    text = browser.text(".reasons tbody")
    assert "rule 3, unfreeze('layers[-1]', lr=0.001, at_epoch=1)" in text
    assert "overrides rule 2, freeze('layers')" in text
    browser.one("#previous").click()
    assert "overrides" not in browser.text(".reasons tbody")
    browser.select("out.weight")
    assert browser.text("#why pre").startswith("embed.weight [6, 4], tied: also out.weight")
    browser.select("layers")
    assert "12 parameters: rule 2, freeze('layers')" in browser.text("#why")


def test_names_stay_text(browser: Browser) -> None:
    """A module named like a script is shown by its name, and no script of a name runs."""
    named = awkward(NAMES[:-1])  # the driver cannot send halves of surrogates
    resolved = FreezePlan().freeze("head").resolve(named)
    browser.show(resolved, other=FreezePlan().resolve(named))
    browser.run("window.alert = () => { window.ran = true; }")
    browser.one("#expand").click()
    for row in resolved.rows[:6]:
        browser.select(row.name)
        assert browser.text("#why h3") == row.name
    assert "<script>alert(1)</script>" in browser.text("#tree")
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.run("return window.ran") is None
    assert browser.run("return document.title").endswith("freezekit report")


def test_difference_is_listed_and_marked(browser: Browser) -> None:
    """Changes stand in the list, what differs in the phase has a mark, and a filter finds it."""
    other = PLAN.freeze("layers[0].norm", "head", until_epoch=2).resolve(model())
    browser.show(plan(), other=other)
    assert "from epoch 0: trainable: True → False for 1 parameter" in browser.text("#changes")
    browser.one("#expand").click()
    assert browser.text("#tree [aria-label='differs from the other plan']") == " ≠"
    browser.one("#differs").click()
    assert set(browser.lines()) == {"", "head", "head.weight"}
    browser.one("#next").click()
    browser.one("#next").click()
    assert browser.lines() == {}
    browser.show(plan())
    assert not browser.one("#difference").is_displayed()
    assert not browser.one("#differ").is_displayed()


def test_the_tree_works_by_keyboard(browser: Browser) -> None:
    """Tab reaches it once; arrows, Home and End move, open and close; Enter says why."""
    browser.show(plan())
    browser.one("#collapse").send_keys(Keys.ENTER)
    assert list(browser.lines()) == ["", "embed", "layers", "bare", "out", "head"]
    browser.press(Keys.TAB)
    assert browser.focused() == ""
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    expanded = "return document.activeElement.getAttribute('aria-expanded')"
    assert (browser.focused(), browser.run(expanded)) == ("layers", "true")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.focused() == "layers.0"
    browser.press(Keys.END)
    assert browser.focused() == "head"
    browser.press(Keys.ENTER, Keys.ARROW_RIGHT, Keys.ENTER)
    assert browser.focused() == "head.weight"
    assert browser.text("#why h3") == "head.weight"
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.HOME)
    assert (browser.focused(), "head.weight" in browser.lines()) == ("", False)
    assert browser.run("return document.querySelectorAll('#tree [tabindex=\"0\"]').length") == 1
    browser.press(Keys.TAB)
    assert browser.run("return document.activeElement.closest('#tree')") is None


def test_phases_work_by_keyboard(browser: Browser) -> None:
    """Arrow keys step through the phases: on the page, on the slider and in the timeline."""
    browser.show(plan())
    browser.one("body").send_keys(Keys.ARROW_RIGHT)
    assert browser.text("#phase").startswith("Phase 2 of 4")
    browser.one("#slider").send_keys(Keys.ARROW_RIGHT)
    assert browser.text("#phase").startswith("Phase 3 of 4")
    browser.one("#timeline thead [aria-current]").send_keys(Keys.ARROW_RIGHT)
    assert browser.text("#phase").startswith("Phase 4 of 4")
    browser.press(Keys.HOME)
    assert browser.text("#phase").startswith("Phase 1 of 4")
    assert browser.run("return document.activeElement.getAttribute('aria-current')") == "step"


def test_the_focus_stays_at_the_last_phase(browser: Browser) -> None:
    """Enter on "next" at the end leaves the focus where it is, and so the way back."""
    browser.show(plan(), "#phase=3")
    for button, ends in (("next", 4), ("previous", 1)):
        browser.one(f"#{button}").send_keys(Keys.ENTER)
        browser.press(*[Keys.ENTER] * 4)
        assert browser.text("#phase").startswith(f"Phase {ends} of 4")
        assert browser.run("return document.activeElement.id") == button


@pytest.mark.parametrize(
    "place",
    ["#expand", "#timeline tbody td.cell.now", "#why h3", "#rules button", "summary", "#copy"],
)
def test_arrows_step_after_a_click(browser: Browser, place: str) -> None:
    """Wherever the last click was, arrows step, if they have no meaning of their own there."""
    browser.show(plan(), "#phase=2", other=plan())
    browser.select("head.weight")
    browser.one(place).click()
    if place == "#rules button":  # it moves the focus to the filter by rule
        browser.run("document.querySelector('#rules button').focus()")
    browser.press(Keys.ARROW_RIGHT)
    assert browser.text("#phase").startswith("Phase 3 of 4")
    browser.press(Keys.ARROW_LEFT)
    assert browser.text("#phase").startswith("Phase 2 of 4")


def test_arrows_keep_their_own_meaning(browser: Browser) -> None:
    """In fields, in the tree, in texts, and with Alt, Ctrl or Meta, arrows do not step."""
    browser.show(plan(), "#phase=2")
    browser.select("head")
    for place in ("#query", "#rule", "#tree [tabindex='0']"):
        browser.one(place).send_keys(Keys.ARROW_RIGHT)
    browser.select("embed")
    browser.one("#expand").click()
    browser.select("embed.weight")
    browser.one("#why pre").send_keys(Keys.ARROW_RIGHT)
    left = (
        "const [place, key] = arguments;"
        "const kind = {key: 'ArrowLeft', bubbles: true, cancelable: true};"
        "return document.querySelector(place).dispatchEvent("
        "new KeyboardEvent('keydown', {...kind, [`${key}Key`]: true}))"
    )
    for key in ("alt", "ctrl", "meta"):
        for place in ("body", "#expand", "#timeline thead [aria-current]", "#tree .row"):
            assert browser.run(left, place, key)
    assert browser.text("#phase").startswith("Phase 2 of 4")
    browser.run("document.querySelector('#time .scroll').style.width = '20em'")
    browser.one("#time .scroll").send_keys(Keys.ARROW_RIGHT)
    assert browser.text("#phase").startswith("Phase 2 of 4")


def test_every_control_has_a_label(browser: Browser) -> None:
    """All that can be used has a name for those who do not see it, in words."""
    browser.show(plan(), "#phase=2", other=plan())
    browser.one("#expand").click()
    browser.pick("rule", "2")
    browser.select("layers.0.norm.bias")
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    used: dict[str, list[str]] = {}
    for node in nodes:
        focusable = any(
            each["name"] == "focusable" and each["value"].get("value")
            for each in node.get("properties", [])
        )
        if focusable and not node["ignored"]:
            role = node["role"]["value"]
            used.setdefault(role, []).append(node.get("name", {}).get("value", "").strip())
    assert set(used) >= {"button", "slider", "searchbox", "combobox", "checkbox", "treeitem"}
    assert "" not in {name for role, names in used.items() if role != "generic" for name in names}
    assert {"Previous phase", "Next phase"} < set(used["button"])
    assert used["combobox"] == ["State", "Rule", "that"]
    assert len(used["treeitem"]) == len(browser.lines())
    assert any(name.startswith("layers ModuleList") for name in used["treeitem"])


def test_news_are_said_in_one_place(browser: Browser) -> None:
    """One live region says where a step led, and what a filter has left."""
    browser.show(plan())
    live = "return document.querySelectorAll('[aria-live], [role=status], output').length"
    assert (browser.run(live), browser.text("#news")) == (1, "")
    browser.one("#next").click()
    assert browser.text("#news") == browser.text("#phase")
    browser.type("dense")
    assert browser.text("#news") == browser.text("#found") != ""


def test_a_form_the_search_does_not_know_is_named(browser: Browser) -> None:
    """Forms of patterns that the search takes for text have a hint."""
    browser.show(plan())
    for text in ("layers[0]", "**@Linear", "!x", "re:.*"):
        browser.type(text)
        assert browser.one("#forms").is_displayed(), text
    browser.type("layers.{0..1}.*")
    assert not browser.one("#forms").is_displayed()


def test_what_only_this_model_has_says_so(browser: Browser) -> None:
    """A parameter that the other plan's model lacks says so under Why."""
    browser.show(plan(), other=FreezePlan().resolve(nn.ModuleDict({"head": nn.Linear(4, 2)})))
    browser.one("#expand").click()
    browser.select("embed.weight")
    assert "only in this model" in browser.text("#why")
    browser.select("head.weight")
    assert "only in this model" not in browser.text("#why")


def test_costs_stand_under_their_headings(browser: Browser) -> None:
    """Numbers of the cost table are right-aligned, as what stands above them."""
    browser.show(plan())
    aligned = (
        "return [...document.querySelectorAll('#cost tr')].flatMap(row =>"
        " [...row.cells].slice(1).map(cell => getComputedStyle(cell).textAlign))"
    )
    assert set(browser.run(aligned)) == {"right"}


CONTRAST = """
const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (color) => {
  probe.clearRect(0, 0, 1, 1); probe.fillStyle = color; probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data];
};
const light = (color) => {
  const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = rgb(color).map((c) => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const grounds = (each) => {
  for (; each; each = each.parentElement) {
    const { backgroundColor, backgroundImage } = getComputedStyle(each);
    const colors = [backgroundColor, ...(backgroundImage.match(/[a-z]+\\([^()]*\\)/g) || [])];
    const seen = colors.filter((color) => rgb(color)[3] === 255);
    if (seen.length) return seen;
  }
};
const contrast = (...lights) => {
  const [a, b] = lights.sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
return [...document.querySelectorAll("body *")].filter((each) =>
  [...each.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())
  && each.checkVisibility() && !each.closest(":disabled, script, noscript, option")).map((each) => {
  const text = light(getComputedStyle(each).color);
  const ratios = grounds(each).map((color) => contrast(text, light(color)));
  return [Math.min(...ratios), each.outerHTML.slice(0, 120), ratios.length];
})"""


EDGES = (
    CONTRAST.split("return [...document")[0]
    + """
return [...document.querySelectorAll("input:not([type=range]), select")].filter((each) =>
  each.checkVisibility()).map((each) =>
  [contrast(light(getComputedStyle(each).borderTopColor), light(grounds(each.parentElement)[0])),
   each.outerHTML.slice(0, 60)]).filter(([ratio]) => ratio < 3);
"""
)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_stand_out_in_both_schemes(browser: Browser, *, dark: bool) -> None:
    """The scheme follows the system, a button changes it, and contrast is 4.5 or more in both."""
    other = PLAN.freeze("layers[0].norm", "head", until_epoch=2).resolve(model())
    browser.show(plan(), "#phase=4", dark=dark, other=other)
    ground = "return getComputedStyle(document.body).backgroundColor"
    before = browser.run(ground)
    browser.one("#expand").click()
    browser.select("head.weight")
    for _ in range(2):
        measured = browser.run(f"{CONTRAST};")
        assert [each for each in measured if each[0] < 4.5] == []
        assert any(count > 1 for _, _, count in measured)  # some stand on a hatch
        assert browser.run(EDGES) == []
        browser.one("#theme").click()
    browser.one("#theme").click()
    assert {before, browser.run(ground)} == {"rgb(255, 255, 255)", "rgb(21, 24, 28)"}
    assert (before == "rgb(21, 24, 28)") is dark


@pytest.mark.parametrize("width", [320, 400, 1280, 1920])
def test_the_page_fits_its_window(browser: Browser, width: int) -> None:
    """At no width the page itself scrolls sideways."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        browser.show(plan(), other=plan())
        browser.one("#expand").click()
        browser.select("embed.weight")
        assert browser.run("return document.documentElement.scrollWidth - innerWidth") <= 0
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_print_shows_all_lines(browser: Browser) -> None:
    """On paper stands the whole tree as it is open, not only what is in view."""
    resolved = ten_thousand()
    browser.show(resolved)
    browser.one("#expand").click()
    in_view = len(browser.lines())
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert in_view < len(browser.lines()) == 2_000
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert len(browser.lines()) == in_view


@pytest.mark.parametrize("phases", [4, 11, 61])
def test_paper_is_wide_enough(browser: Browser, phases: int) -> None:
    """On a sheet nothing stands beyond the right edge, and it is printed in the light scheme."""
    network = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(3, 3) for _ in range(60))})
    network["head"] = nn.Linear(3, 2)
    layerwise = FreezePlan().freeze("blocks").unfreeze_layerwise("blocks", start_epoch=1)
    resolved = {4: plan(), 11: ten_thousand(), 61: layerwise.resolve(network)}[phases]
    assert len(resolved.phases) == phases
    sheet = {"width": 718, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sheet)
    try:
        browser.show(resolved, dark=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark"}
        browser.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"media": "print", "features": [scheme]}
        )
        browser.run("dispatchEvent(new Event('beforeprint'))")
        assert browser.run("return document.documentElement.scrollWidth") <= 718
        assert browser.run("return document.getElementById('timeline').offsetWidth") <= 718
        assert browser.run("return getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.timing
def test_layers_that_all_differ_open_fast(browser: Browser) -> None:
    """So it is with 2,000 layers, none like the next, in 60 phases."""
    browser.show(none_alike(), base_lr=1e-3)
    assert 0 < browser.opening() < 2_000
    step = "const start = performance.now(); go(50); return performance.now() - start"
    assert browser.run(step) < 2_000
    assert browser.text("#more") == "Show 200 more of 2,001 rows"


@pytest.mark.timing
def test_ten_thousand_parameters_open_fast(browser: Browser) -> None:
    """With 10,000 parameters the page is there, and steps, within two seconds."""
    browser.show(ten_thousand())
    assert 0 < browser.opening() < 2_000
    step = "const start = performance.now(); go(5); return performance.now() - start"
    assert browser.run(step) < 2_000
    browser.one("#expand").click()
    assert 0 < len(browser.lines()) < 300
    browser.type("39.experts.29.d.bias")
    assert browser.text("#found") == "1 of 10,000 parameters, 0 of 6,321 modules"
