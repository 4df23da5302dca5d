import re
from dataclasses import replace
from html.parser import HTMLParser

from ttsi_jax.runs.compare import Run
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.report import render_report
from ttsi_jax.runs.summary import summarise

RECORD = Record(
    id="input 1",
    task="t",
    query="book a table\nfor two",
    candidates=["book", "cancel"],
    probabilities=[0.6, 0.4],
    uncertainty=0.2,
    uncertain=True,
    synthetic=[{"query": "reserve", "calls": [{"name": "book"}], "accepted": False, "reason": "unknown argument"}],
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


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers what the tests ask about."""

    VOID = {"meta", "input", "link", "img"}

    def __init__(self, html):
        super().__init__()
        self.open, self.scripts, self.inputs, self.text = [], 0, [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        values = dict(attrs)
        assert not {"src", "href", "onclick"} & values.keys()
        if values.get("class") == "input":
            self.inputs.append((values["data-tags"] or "").split())

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def page(*records, config=None, name="run"):
    return Page(render_report({name: Run(config or {}, list(records), summarise(records))}))


def test_an_input_is_shown_from_request_to_answer():
    text = page(RECORD, config={"gate": {"tau": 0.95}}).text
    for shown in (
        "book a table\nfor two",
        "0.2, threshold τ 0.95: uncertain",
        "2.5 → 0.125",
        "rejected: unknown argument",
    ):
        assert shown in text
    assert re.search(r'"seats": 2', text) and "sure!" in text and '"tau": 0.95' in text
    assert "0.0 % (0/1)" in text and "100.0 % (1/1)" in text


def test_every_input_carries_the_words_it_is_filtered_by():
    broke = replace(RECORD, uncertain=False, adapted=False, call_correct_base=True, call_correct=False)
    failed = replace(RECORD, error="out of memory")
    unlabelled = Record("x", "t", "q")
    shown = page(RECORD, broke, failed, unlabelled)
    assert shown.inputs == [["uncertain", "adapted", "fixed"], ["broke"], ["failed"], []]
    assert "out of memory" in shown.text


def test_nothing_of_a_run_becomes_markup():
    evil = "</pre></details><script>alert(1)</script><img src=x onerror=alert(1)>\"'&$title"
    record = Record(
        id=evil,
        task=evil,
        query=evil,
        candidates=[evil],
        probabilities=[1.0],
        synthetic=[{"query": evil, "calls": [{"name": evil}], "accepted": False, "reason": evil}],
        pick_base=evil,
        text_base=evil,
        base_calls=[{"name": evil, "arguments": {evil: evil}}],
        text_adapted=evil,
        calls=[{"name": evil}],
        gold=[{"name": evil}],
        reason=evil,
        seconds={evil: 1.0},
    )
    shown = page(record, replace(record, error=evil), config={evil: evil, "gate": {"tau": evil}}, name=evil)
    assert shown.scripts == 1
    assert shown.text.count(evil) > 10


def test_a_page_can_always_be_written_and_needs_no_network():
    html = render_report({"a": Run({}, [replace(RECORD, query="\ud800\x00")], None), "b": Run({"gate": 1}, [], None)})
    html.encode()
    assert "http" not in html and "(unfinished)" in html
