"""The report as a browser shows it."""

from dataclasses import replace

import pytest

from runs.chromium import Chromium, find_chromium
from runs.synthetic import base_run, listed, record, run
from ttsi_jax.runs.groups import Run
from ttsi_jax.runs.report import render_report

if find_chromium() is None:
    pytest.skip("needs Chromium", allow_module_level=True)

SCRIPT = "<script>window.evil = 1</script>"
MARKUP = f'{SCRIPT}<img src="x" onerror="window.evil = 1">'


@pytest.fixture(scope="module")
def browser():
    with Chromium(find_chromium()) as browser:
        yield browser
        assert browser.errors == []
        assert all(address.startswith("file:") for address in browser.requests)


@pytest.fixture
def opened(browser, tmp_path):
    def opened(**runs):
        (tmp_path / "report.html").write_text(render_report(runs), encoding="utf-8")
        browser.open(tmp_path / "report.html")
        return browser

    return opened


def shown(browser):
    return browser.evaluate("document.getElementById('shown').textContent")


def selected(browser):
    return browser.evaluate("document.querySelector('#input h3').textContent")


def view(browser):
    return browser.evaluate("document.getElementById('input').innerText")


def search(browser, text):
    browser.evaluate("document.getElementById('search').focus()")
    browser.send("Input.insertText", text=text)


def click(browser, selector):
    browser.evaluate(f"document.querySelector({selector!r}).click()")


def test_the_summary_and_the_plots_are_drawn(opened):
    page = opened(**{"base": base_run(120), "tt-0": run(120), "tt-1": run(120, seed=1)._replace(summary=None)})
    text = page.evaluate("document.body.innerText")
    for said in ("tt-1 (unfinished)", "tt-1: unfinished, with 120 inputs so far", "Where the gain comes from", "Brier"):
        assert said in text
    assert page.evaluate("document.querySelectorAll('#gate .chart svg polyline').length") == 3 + 2 + 3 + 2 + 3
    assert page.evaluate("document.querySelectorAll('.forest circle').length") == 4
    assert not page.evaluate("/NaN|Infinity|undefined/.test(document.getElementById('gate').outerHTML)")


def test_filters_and_search_leave_what_they_say(opened):
    own = run(300)
    page = opened(a=own)
    assert shown(page) == "300 of 300"
    for tag, expected in {"fixed": own.summary["fixed"], "broken": own.summary["broke"], "error": 3}.items():
        click(page, f"button[data-tag={tag}]")
        assert shown(page) == f"{expected} of 300"
        assert page.evaluate("[...document.querySelectorAll('.row')].every((row) => row.innerText)")
        assert tag in view(page)
    assert "no function given" in view(page)  # of an input that failed
    page.press("/")
    page.evaluate("document.querySelector('button[data-tag=\"\"]').click()")
    search(page, "CASE 42.")
    assert shown(page) == "1 of 300" and selected(page) == "input-00042"
    search(page, " not there")
    assert shown(page) == "0 of 300" and "No input is left" in view(page)
    page.press("Escape")
    assert shown(page) == "300 of 300"


def test_the_keyboard_is_enough(opened):
    page = opened(a=run(300))
    for key, expected in (("j", 1), ("j", 2), ("k", 1), ("k", 0), ("k", 0)):
        page.press(key)
        assert selected(page) == f"input-{expected:05}"
    page.press("ArrowDown")
    assert selected(page) == "input-00000"  # outside of the browser arrows scroll the page
    page.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.press("j")
    assert page.evaluate("document.getElementById('search').value") == "j"
    page.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    page.press("ArrowDown")
    page.press("End")
    assert selected(page) == "input-00299"
    assert page.evaluate("document.querySelector('[aria-selected=true]').getBoundingClientRect().bottom"
                         " <= document.getElementById('list').getBoundingClientRect().bottom + 1")  # fmt: skip
    assert page.evaluate("document.querySelectorAll('.row').length") < 60


def test_an_input_shows_how_it_got_from_request_to_answer(opened):
    records = [record(number) for number in range(200)]
    fixed = next(
        own for own in records if own.adapted and not own.call_correct_base and own.call_correct and own.base_calls
    )
    fixed = replace(
        fixed,
        base_calls=[{"name": "f", "arguments": {"city": "Bergen", "seats": 2}}],
        adapted_calls=[{"name": "f", "arguments": {"city": "Oslo", "seats": 2}}],
        query=[{"role": "user", "content": "Where to?"}, {"role": "assistant", "content": "Say where."}],
        synthetic=[
            {"query": "kept", "calls": [{"name": "f", "arguments": {}}], "accepted": True, "reason": None},
            {"query": "lost", "calls": [], "accepted": False, "reason": "unknown function",
             "samples": [{"text": "a sampled answer", "reward": 0.5}]},
            {"query": "again", "calls": [], "accepted": False, "reason": "a copy of the seed", "check": "copy"},
        ],
        evidence={"sibling_loss_base": 1.5, "seeds_agree": False, "kl": None},
        samples_base=["said twice", "said once", "said twice", None], adapters=["of the first", "of the second"],
    )  # fmt: skip
    page = opened(a=Run({"gate": {"tau": 0.95}}, [fixed], None, [listed(fixed)]))
    assert page.evaluate("document.querySelector('.row .query').textContent") == "Where to?"
    text = view(page)
    assert "Say where." in text and "6 functions" in text and "Where to." not in text  # folded
    page.evaluate("document.querySelector('#input details').open = true")
    assert all(said in view(page) for said in (f"To play_song, as {fixed.id} may.", '"type": "integer"', "Where to."))
    for said in ("Where to?", "< τ 0.95: uncertain", "Examples", "✓ kept", "✗ dropped: unknown function",
                 "a sampled answer", "✗ dropped by copy: a copy of the seed", "sibling loss base", "seeds agree",
                 "sampled, before: 4", "of each adapter: 2"):  # fmt: skip
        assert said in text
    counted = page.evaluate("[...document.querySelectorAll('#input details pre.soft')].map((node) => node.textContent)")
    assert counted[:3] == ["2 ×  said twice", "1 ×  said once", "1 ×  (nothing)"]
    marked = "[...document.querySelectorAll('#input {}')].map((node) => node.textContent)"
    assert page.evaluate(marked.format("del")) == ["Bergen"]
    assert page.evaluate(marked.format("ins")) == ["Oslo"]
    assert page.evaluate("document.querySelectorAll('#input .chart .dot').length") == len(fixed.losses)


def test_an_input_of_which_little_is_known_is_shown(opened):
    bare = replace(
        record(96), query=[{"role": "system"}], seconds={}, base_calls=None, text_base=None, calls=None, gold=None
    )
    page = opened(a=Run({}, [bare], None), b=Run({}, [], None))
    assert "no function given" in view(page)
    page.evaluate("document.getElementById('run').value = '1'")
    page.evaluate("document.getElementById('run').dispatchEvent(new Event('change'))")
    assert shown(page) == "0 of 0" and "No input is left" in view(page)


def test_what_a_model_said_stays_text(opened):
    call = {"name": SCRIPT, "arguments": {MARKUP: MARKUP}}
    pair = {"query": MARKUP, "calls": [call], "accepted": False, "reason": MARKUP}
    evil = replace(
        record(1), id=MARKUP, query=MARKUP, candidates=[SCRIPT], probabilities=[1.0], pick=SCRIPT, pick_base=SCRIPT,
        synthetic=[pair], base_calls=[call], adapted_calls=[call, call], calls=[call], gold=[call], text_base=MARKUP,
        text_adapted=MARKUP, samples_adapted=[MARKUP], reason=MARKUP, adapted=True, seconds={MARKUP: 1.0}, task=MARKUP,
    )  # fmt: skip
    functions = [{"name": MARKUP, "description": MARKUP, "parameters": {MARKUP: MARKUP}}]
    kept = [{"functions": functions, "inputs": [MARKUP]}]
    page = opened(**{MARKUP: Run({"method": MARKUP, MARKUP: MARKUP}, [evil], None, kept)})
    assert view(page).count(SCRIPT) > 10
    assert page.evaluate("document.querySelector('#input details').textContent").count(SCRIPT) == 4
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("window.evil") is None


def test_light_and_dark(opened):
    page = opened(a=run(20))
    colours = []
    for dark in (False, True):
        page.dark(dark)
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    page.dark(False)
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]


def test_a_narrow_window_scrolls_in_one_direction(opened):
    page = opened(a=run(40), b=base_run(40))
    page.send("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False)
    width = page.evaluate("document.documentElement.scrollWidth")
    page.send("Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False)
    assert width <= 390
