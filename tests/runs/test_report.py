import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from runs.synthetic import base_run, run
from ttsi_jax.runs.groups import Run
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.report import CORNERS, SCRIPTS, _read, render_report, report_data, tags
from ttsi_jax.runs.summary import summarise

RECORD = Record(
    id="input 1",
    task="t",
    query="book a table\nfor two",
    candidates=["book", "cancel"],
    probabilities=[0.6, 0.4],
    uncertainty=0.2,
    uncertain=True,
    synthetic=[{"query": "reserve", "calls": [], "accepted": False, "reason": "unknown argument"}],
    losses=[2.5, 0.125],
    pick_base="cancel",
    pick="book",
    text_base="sure!",
    base_calls=[],
    calls=[{"name": "book", "arguments": {"seats": 2}}],
    adapted=True,
    call_correct_base=False,
    call_correct=True,
    seconds={"score": 0.5},
)
EVIL = "</script></pre><!--<script>alert(1)</script><img src=x onerror=alert(1)>\"'&$title ${style} \u2028\u202e\x00"


class Page(HTMLParser):
    """Checks that tags are closed in order, and takes the page apart."""

    VOID = {"meta", "input", "link", "img"}

    def __init__(self, html):
        super().__init__()
        self.open, self.found, self.text, self.policy = [], [], {"script": [], "style": []}, ""
        self.feed(html)
        assert not self.open
        self.data = json.loads(self.text["script"][0])

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.found.append(tag)
        values = dict(attrs)
        assert not {"src", "onclick"} & values.keys()
        assert (values.get("href") or "#").startswith("#")
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in self.text:
            self.text[self.open[-1]].append(data)


def page(*records, config=None, name="run", functions=()):
    return Page(render_report({name: Run(config or {}, list(records), summarise(records), functions)}))


def test_all_of_a_record_that_says_something_is_in_the_page():
    (own,) = page(RECORD, config={"gate": {"tau": 0.95}}).data["runs"]
    assert own["tau"] == 0.95 and own["finished"]
    (record,) = own["records"]
    assert record["tags"] == ["fixed", "adapted", "uncertain"]
    assert "error" not in record
    for name, value in record.items():
        assert name == "tags" or value == getattr(RECORD, name)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ["fixed", "adapted", "uncertain"]),
        ({"call_correct_base": True, "call_correct": False, "uncertain": False}, ["broken", "adapted"]),
        ({"reverted": True, "call_correct": False}, ["reverted", "adapted", "uncertain"]),
        ({"error": "out of memory"}, ["error"]),
        ({"adapted": False, "call_correct": None, "uncertain": None}, []),
    ],
)
def test_every_input_carries_the_words_it_is_filtered_by(changes, expected):
    assert tags(replace(RECORD, **changes)) == expected


def test_nothing_of_a_run_becomes_markup():
    call = {"name": EVIL, "arguments": {EVIL: EVIL}}
    record = Record(
        id=EVIL,
        task=EVIL,
        query=EVIL,
        candidates=[EVIL],
        probabilities=[1.0],
        synthetic=[{"query": EVIL, "calls": [call], "accepted": False, "reason": EVIL}],
        pick_base=EVIL,
        text_base=EVIL,
        base_calls=[call],
        text_adapted=EVIL,
        calls=[call],
        gold=[call],
        reason=EVIL,
        seconds={EVIL: 1.0},
    )
    plain = page(RECORD)
    functions = [{"functions": [{EVIL: EVIL, "name": EVIL, "description": EVIL}], "inputs": [EVIL]}]
    records = [record, replace(record, id="x", error=EVIL)]
    evil = page(*records, config={EVIL: EVIL, "gate": {"tau": EVIL}}, name=EVIL, functions=functions)
    assert evil.data["functions"] == [functions[0]["functions"]]
    assert evil.found == plain.found
    assert evil.data["runs"][0]["records"][0]["candidates"] == [EVIL]
    assert evil.text["script"][1] == plain.text["script"][1]


def test_the_policy_allows_this_style_and_script_and_nothing_else():
    found = page(RECORD)
    for kind, text in (("style", found.text["style"][0]), ("script", found.text["script"][1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in found.policy
    assert found.policy.startswith("default-src 'none'") and "unsafe" not in found.policy


def test_scripts_write_text_and_never_markup():
    script = "".join(map(_read, SCRIPTS))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|</|<!--", script)
    assert not re.search(r"fetch|XMLHttpRequest|WebSocket|import\(|localStorage", script)


def test_pairs_are_told_without_who_wrote_them_and_what_for():
    script = "".join(map(_read, SCRIPTS))
    assert 'part("Examples", ' in script and "✓ kept" in script
    assert "trained on" not in script and "for itself" not in script


def test_a_page_can_always_be_written():
    runs = {
        "a": Run({}, [replace(RECORD, query="\ud800\x00")], None),
        "b": Run({"gate": 1}, [], None),
        "\ud800": run(3),
    }
    render_report(runs).encode()


def test_an_unfinished_run_says_so():
    found = report_data({"a": run(4), "b": run(3, seed=1)._replace(summary=None)})
    assert [own["finished"] for own in found["runs"]] == [True, False]
    assert "b: unfinished, with 3 inputs so far" in found["notes"]


def test_seeds_share_their_figures_and_keep_their_inputs():
    found = report_data({"base": base_run(50), "tt-0": run(50), "tt-1": run(50, seed=1)})
    assert [gate["name"] for gate in found["gates"]] == ["1: base", "2: tt (2 seeds)"]
    assert found["gates"][0]["gain"] is None
    assert [len(own["records"]) for own in found["runs"]] == [50, 50, 50]
    assert {own["title"] for own in found["tables"]} > {"What changed", "Gate: errors"}
    assert len(found["differences"]) == 4


def test_an_input_has_its_list_of_functions_which_the_page_holds_once():
    first, second = ({"functions": [{"name": name}], "inputs": [f"input {name}"]} for name in "12")
    own = Run({}, [RECORD, replace(RECORD, id="input 2"), replace(RECORD, id="input 3")], None, [first, second])
    found = report_data({"a": Run({}, [RECORD], None), "b": own, "c": own._replace(functions=[second])})
    assert found["functions"] == [[{"name": "1"}], [{"name": "2"}]]
    places = [[record.get("functions") for record in run["records"]] for run in found["runs"]]
    assert places == [[None], [0, 1, None], [None, 1, None]]


def test_plots_have_no_more_corners_than_can_be_seen():
    risk = report_data({"a": run(1000)})["gates"][0]["risk"]["call"]
    assert len(risk) == CORNERS and risk[-1][0] == 1
