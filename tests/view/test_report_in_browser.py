"""The report in Chromium: it works offline, does no harm, and its conditions are those of `hwsearch pareto`."""

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from hwsearch.cli import commands
from hwsearch.errors import UserError
from hwsearch.results.candidates import CandidateTable
from hwsearch.results.query import Order, column_names, column_values, parse_condition, query
from hwsearch.view.report.report import write_report
from tests.tiny import Tiny
from tests.view.browser import WAIT_SECONDS, chromium, errors, open_page, requests
from tests.view.reports import HARMFUL, made_up_report

SAME_POSITION_SECONDS = 0.05
"""Twice the length of a block of sound, in which the clock of the player moves."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def real(browser: Chrome, tiny: Tiny) -> Chrome:
    """The report of the tiny run."""
    open_page(browser, tiny.folder / "report.html")
    return browser


@pytest.fixture(scope="module")
def made_up_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made-up") / "report.html"
    write_report(made_up_report(), path)
    return path


@pytest.fixture
def made_up(browser: Chrome, made_up_file: Path) -> Chrome:
    open_page(browser, made_up_file)
    return browser


def wait(browser: Chrome, condition: Callable[[Chrome], object]) -> None:
    WebDriverWait(browser, WAIT_SECONDS, poll_frequency=0.1).until(condition)


def text_of(browser: Chrome, name: str) -> str:
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def type_where(browser: Chrome, text: str) -> None:
    field = browser.find_element(By.ID, "where")
    field.clear()
    field.send_keys(text)


def shown_candidates(browser: Chrome) -> list[int]:
    script = "return [...document.querySelectorAll('#candidates-body .choose')].map((each) => Number(each.textContent))"
    return browser.execute_script(script)


def test_the_page_works_without_errors_and_asks_for_nothing(real: Chrome, tiny: Tiny) -> None:
    wait(real, lambda page: page.find_elements(By.CSS_SELECTOR, "#front .point"))
    assert errors(real) == []
    assert requests(real) == [(tiny.folder / "report.html").resolve().as_uri()]
    hidden = "return [...document.querySelectorAll('main > section')].filter((each) => each.hidden).map((each) => each.id)"
    assert real.execute_script(hidden) == []
    for figure in ("front", "bits", "layers", "sensitivity", "volume"):
        assert real.execute_script("return document.getElementById(arguments[0]).querySelectorAll('.main-svg').length", figure)


def test_every_figure_and_field_has_a_name(real: Chrome) -> None:
    unnamed = """
        const named = (element) => element.getAttribute("aria-label") || element.textContent.trim() || element.labels?.length ||
            (element.getAttribute("aria-labelledby") ?? "").split(" ").some((id) => document.getElementById(id)?.textContent);
        const all = document.querySelectorAll("[role=img], button, select, input, section, a");
        return [...all].filter((element) => !named(element)).map((element) => element.outerHTML.slice(0, 200))
            .concat([...document.images].filter((image) => !image.alt).map((image) => image.outerHTML.slice(0, 200)));
    """
    assert real.execute_script(unnamed) == []


@pytest.mark.parametrize("width", [360, 1500])
def test_the_page_is_no_wider_than_the_window(real: Chrome, width: int) -> None:
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    real.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        real.refresh()
        assert real.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        real.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_colours_follow_the_dark_scheme(real: Chrome) -> None:
    def brightness() -> list[float]:
        style = "const found = getComputedStyle(document.querySelector('section')); return [found.backgroundColor, found.color]"
        return [sum(map(float, each[each.index("(") + 1 : -1].split(",")[:3])) for each in real.execute_script(style)]

    def fonts() -> str:
        return real.execute_script("return document.querySelector('#front .xtick text').style.fill")

    seen = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        real.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        time.sleep(0.3)
        seen[scheme] = (brightness(), fonts())
    real.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    (light, light_text), (dark, dark_text) = seen["light"], seen["dark"]
    assert light[0] - light[1] > 400
    assert dark[1] - dark[0] > 400
    assert light_text != dark_text, "the figures are drawn again"


def test_a_point_that_is_clicked_becomes_the_chosen_candidate(real: Chrome, tiny: Tiny) -> None:
    real.execute_script("document.getElementById('front').scrollIntoView({ block: 'center' })")
    place = real.execute_script("""
        const figure = document.getElementById("front");
        const row = frontRows.find((each) => each !== chosenRow);
        const { xaxis, yaxis } = figure._fullLayout;
        const box = figure.getBoundingClientRect();
        const [x, y] = point(row);
        return [row, box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(y)];
    """)
    row, left, top = place
    actions = ActionChains(real)
    actions.w3c_actions.pointer_action.move_to_location(int(left), int(top))
    actions.w3c_actions.pointer_action.pause(0.5)
    actions.perform()
    wait(real, lambda page: page.find_elements(By.CSS_SELECTOR, "#front .hoverlayer .hovertext"))
    hover = real.find_element(By.CSS_SELECTOR, "#front .hoverlayer .hovertext").text
    ActionChains(real).click().perform()
    number = real.execute_script("return page.rows.candidate[arguments[0]]", row)
    wait(real, lambda page: text_of(page, "candidate-name") == f"Candidate {number}")
    assert f"candidate {number}" in hover
    assert "weights:" in hover
    words = shlex.split(text_of(real, "export-command"))
    assert [*words[:2], *words[3:5]] == ["hwsearch", "export", "--candidate", str(number)]
    assert Path(words[2]).parts[-2:] == tiny.folder.parts[-2:]
    commands.commands["export"].make_context("export", words[2:])


def test_the_front_can_be_walked_and_chosen_from_with_the_keyboard(real: Chrome) -> None:
    front = real.execute_script("return frontRows.map((row) => page.rows.candidate[row])")
    before = text_of(real, "candidate-name")
    real.find_element(By.ID, "next").send_keys(Keys.ENTER)
    after = text_of(real, "candidate-name")
    assert after != before
    assert int(after.split()[1]) == front[(front.index(int(before.split()[1])) + 1) % len(front)]
    button = real.find_elements(By.CSS_SELECTOR, "#candidates-body .choose")[0]
    button.send_keys(Keys.ENTER)
    assert text_of(real, "candidate-name") == f"Candidate {button.text}"


def test_any_column_can_be_on_either_axis(real: Chrome) -> None:
    choose = "const select = document.getElementById(arguments[0]); select.value = String(arguments[1]); select.onchange()"
    count = real.execute_script("return axisColumns.length")
    assert count > 10
    for place in range(count):
        real.execute_script(choose, "axis-x", place)
        real.execute_script(choose, "axis-y", 3 * place % count)
        x, y = real.execute_script("return [shownAxes.x, shownAxes.y]")
        assert f"{y} against {x}" in text_of(real, "front-caption")
    assert errors(real) == []


def test_a_typed_condition_filters_the_table_as_pareto_does(real: Chrome, tiny: Tiny) -> None:
    from hwsearch.workflow.runs import read_run

    table = read_run(tiny.folder).table
    bound = int(np.median(table.columns["size_bytes"]))
    type_where(real, f"size_bytes<={bound} and strategy!=uniform")
    conditions = [parse_condition(f"size_bytes<={bound}"), parse_condition("strategy!=uniform")]
    wanted = query(table, conditions).candidate.tolist()
    assert wanted
    wait(real, lambda page: shown_candidates(page) == wanted)
    real.find_element(By.ID, "only-front").click()
    assert shown_candidates(real) == query(table, conditions, only_front=False).candidate.tolist()[:100]
    type_where(real, "size_bytes<=")
    assert "malformed" in text_of(real, "where-problem")
    type_where(real, "sise_bytes<=1")
    assert "unknown column 'sise_bytes'" in text_of(real, "where-problem")


def test_a_click_on_a_heading_sorts(real: Chrome) -> None:
    def click(name: str) -> list[int]:
        script = "[...document.querySelectorAll('.sort')].find((each) => each.firstChild.data === arguments[0]).click()"
        real.execute_script(script, name)
        return shown_candidates(real)

    rising, falling = click("drop_db"), click("drop_db")
    values = dict(real.execute_script("return allRows.map((row) => [page.rows.candidate[row], columnOf('drop_db')(row)])"))
    assert [values[number] for number in rising] == sorted(values[number] for number in rising)
    assert falling[0] == rising[-1]


def test_sound_plays_and_another_clip_goes_on_at_the_same_position(real: Chrome) -> None:
    clips = real.execute_script("return page.sound.clips.length")
    real.find_element(By.ID, "play").click()
    wait(real, lambda page: page.execute_script("return player.position() > 0.1"))
    assert real.execute_script("return player.context.state") == "running"
    switched = real.execute_script("const before = player.position(); player.select(2); return [before, player.position()]")
    assert 0 <= switched[1] - switched[0] < SAME_POSITION_SECONDS
    gains = "return player.gains.map(({ gain }) => Math.round(gain.value))"
    wait(real, lambda page: page.execute_script(gains) == [int(place == 2) for place in range(clips)])
    real.find_element(By.ID, "play").click()
    stopped = real.execute_script("return player.position()")
    time.sleep(0.3)
    assert real.execute_script("return player.position()") == stopped
    real.find_element(By.ID, "play").send_keys("4")
    assert real.execute_script("return player.selected") == 3
    assert real.execute_script("return player.position()") == stopped
    assert real.execute_script("return document.querySelectorAll('#clips input')[3].checked")
    assert errors(real) == []


def test_what_is_heard_is_the_selected_clip(made_up: Chrome) -> None:
    """The made-up clips are tones of 500, 600 ... Hz: the spectrum of the output tells which one plays."""
    heard = """
        const done = arguments[arguments.length - 1];
        (async () => {
            await player.prepare();
            const ear = player.context.createAnalyser();
            ear.fftSize = 16384;
            player.gains.forEach((gain) => gain.connect(ear));
            const found = [];
            for (const place of [0, 3, 1]) {
                await player.seek(0);
                player.select(place);
                await player.play();
                await new Promise((resolve) => setTimeout(resolve, 900));
                const levels = new Float32Array(ear.frequencyBinCount);
                ear.getFloatFrequencyData(levels);
                found.push(levels.indexOf(Math.max(...levels)) * player.context.sampleRate / ear.fftSize);
                player.pause();
            }
            done(found);
        })();
    """
    made_up.find_element(By.ID, "play").click()
    assert made_up.execute_async_script(heard) == pytest.approx([500, 800, 600], abs=10)


def test_texts_from_files_do_no_harm(made_up: Chrome, made_up_file: Path) -> None:
    made_up.execute_script("document.getElementById('only-front').click(); allRows.forEach(showCandidate)")
    for which in ("sensitivity", "volume", "angles"):
        assert made_up.execute_script("return document.getElementById(arguments[0]).querySelectorAll('.main-svg').length", which)
    ActionChains(made_up).move_to_element(made_up.find_element(By.ID, "front")).perform()
    assert made_up.execute_script("return window.harmed") is None
    assert errors(made_up) == []
    assert requests(made_up) == [made_up_file.resolve().as_uri()]
    cells = made_up.execute_script(
        "return [...document.querySelectorAll('#candidates-body .words')].map((each) => each.textContent)"
    )
    assert set(HARMFUL) <= set(cells)
    assert made_up.execute_script("return document.querySelectorAll('script').length") == 3
    assert made_up.find_element(By.TAG_NAME, "h1").text.startswith(HARMFUL[0])


def expressions(table: CandidateTable) -> list[str]:
    """Conditions on every column with every operator, values in many forms, and texts that are no conditions."""
    rng = np.random.default_rng(5)
    operators = ["<=", ">=", "<", ">", "==", "!=", "="]
    numbers = [
        "0",
        "1",
        "-3",
        "+4",
        "2.5",
        ".5",
        "5.",
        "1e4",
        "1_000",
        "1__0",
        "_1",
        "1e999",
        "inf",
        "-Infinity",
        "nan",
        "0x10",
        "",
        "two",
    ]
    found = []
    for name in column_names(table):
        values = column_values(table, name)
        for operator in operators:
            picked = rng.choice(values)
            found.append(f"{name}{operator}{picked}" if values.dtype.kind != "f" else f"{name}{operator}{picked:.17g}")
            found.append(f" {name} {operator}  {rng.choice(numbers)} ")
    found += [f"candidate{operator}{number}" for operator in operators for number in numbers]
    found += ["uniform==true", "uniform!=true", "uniform=false", "uniform>=0.5", "uniform==yes", "candidate==true"]
    found += ["strategy==kl", "strategy!=kl", "strategy<kl", "fidelity=shared", "fidelity==post-training", "fidelity>=shared"]
    found += [
        "size_bytes",
        "<=5",
        "size_bytes<=5 6",
        "size_bytes=<5",
        "size_bytes==>5",
        "size_bytes<=1<2",
        "a b<=3",
        "nothing<=3",
        "and",
    ]
    joined = [" and ".join(rng.choice(found, 2)) for _ in range(150)]
    return found + joined


def reference(tables: list[CandidateTable], text: str, *, only_front: bool) -> list[tuple[str, int]] | None:
    """What Python answers: fidelity and candidate of each row, or None for what it refuses."""
    try:
        conditions = [parse_condition(each) for each in text.split(" and ")] if text.strip() else []
        answers = [query(table, conditions, only_front=only_front) for table in tables]
    except UserError:
        return None
    return sorted((answer.fidelity.value, number) for answer in answers for number in answer.candidate.tolist())


@pytest.mark.parametrize("only_front", [False, True])
def test_conditions_mean_what_they_mean_to_pareto(made_up: Chrome, *, only_front: bool) -> None:
    tables = list(made_up_report().tables)
    texts = expressions(tables[0])
    script = """
        return arguments[0].map((text) => {
            try {
                const rows = filtered(allRows, parseWhere(text));
                const kept = arguments[1] ? frontsOf(rows, page.objectives) : rows;
                return kept.map((row) => [columnOf("fidelity")(row), page.rows.candidate[row]]);
            } catch { return null; }
        });
    """
    answers = made_up.execute_script(script, texts, only_front)
    wanted = [reference(tables, text, only_front=only_front) for text in texts]
    assert sum(each is None for each in wanted) > 50
    assert sum(bool(each) for each in wanted) > 100
    for text, answer, want in zip(texts, answers, wanted, strict=True):
        found = None if answer is None else sorted(map(tuple, answer))
        assert found == want, text


def test_rows_are_sorted_as_pareto_sorts_them(made_up: Chrome) -> None:
    (table, _) = made_up_report().tables
    script = """
        const rows = allRows.filter((row) => page.rows.series[row] === 0);
        return sorted(rows, arguments[0], arguments[1]).map((row) => page.rows.candidate[row]);
    """
    for name in column_names(table):
        for descending in (False, True):
            wanted = query(table, order=Order(name, descending), only_front=False).candidate.tolist()
            if column_values(table, name).dtype.kind == "U":
                continue  # names have the order of their code points in both, but harmful ones are no test of that
            assert made_up.execute_script(script, name, descending) == wanted, name


def test_a_double_press_of_play_plays_once(made_up: Chrome) -> None:
    script = """
        const done = arguments[arguments.length - 1];
        (async () => {
            let begun = 0;
            player.pause();
            const start = AudioBufferSourceNode.prototype.start;
            AudioBufferSourceNode.prototype.start = function (...given) { begun += 1; return start.apply(this, given); };
            await Promise.all([player.play(), player.play()]);
            const once = begun;
            player.pause();
            done([once, page.sound.clips.length]);
        })();
    """
    made_up.find_element(By.ID, "play").click()
    wait(made_up, lambda page: page.execute_script("return player.position() > 0"))
    once, clips = made_up.execute_async_script(script)
    assert once == clips


def test_keys_of_the_browser_stay_its_own(made_up: Chrome) -> None:
    script = """
        const event = new KeyboardEvent("keydown", { key: "2", ctrlKey: true, bubbles: true, cancelable: true });
        return [document.getElementById("play").dispatchEvent(event), player.selected];
    """
    assert made_up.execute_script(script) == [True, 0]


def test_without_a_front_there_is_nothing_to_step_along(browser: Chrome, tmp_path: Path) -> None:
    report = made_up_report()
    unknown = [replace(table, columns={**table.columns, "size_bytes": np.full(len(table), np.nan)}) for table in report.tables]
    write_report(replace(report, tables=unknown), tmp_path / "report.html")
    open_page(browser, tmp_path / "report.html")
    assert browser.execute_script("return frontRows.length") == 0
    assert browser.execute_script("return ['previous', 'next'].map((id) => document.getElementById(id).disabled)") == [True, True]
    assert errors(browser) == []
