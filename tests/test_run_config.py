import json
from dataclasses import replace

import pytest

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.config import RunConfig, check, find_parts
from ttsi_jax.errors import InputError
from ttsi_jax.rules import RULES, adamw
from ttsi_jax.rules.names import resolve
from ttsi_jax.synthesis import SynthesisConfig, TeacherConfig
from ttsi_jax.uncertainty import GateConfig

INF, NAN = float("inf"), float("nan")
ONE, ABOVE = "it must be at least 1", "it must be above 0 and at most 1e+30"
LEAST = "it must be at least 0 and at most 1e+30"
UP_TO_A_DAY = "it must be above 0 and at most 86400 (a day)"
REFUSED = [
    ("wave", {"wave": 0}, "0", ONE),
    ("wave", {"wave": -4}, "-4", ONE),
    ("synthesis.k", {"synthesis": SynthesisConfig(k=0)}, "0", ONE),
    ("synthesis.tries", {"synthesis": SynthesisConfig(tries=0)}, "0", ONE),
    ("synthesis.max-tokens", {"synthesis": SynthesisConfig(max_tokens=0)}, "0", ONE),
    ("synthesis.labels", {"synthesis": SynthesisConfig(labels=0)}, "0", ONE),
    ("adapt.epochs", {"adapt": AdaptConfig(epochs=0)}, "0", ONE),
    ("adapt.rank", {"adapt": AdaptConfig(rank=0)}, "0", ONE),
    ("answer.max-tokens", {"answer": AnswerConfig(max_tokens=0)}, "0", ONE),
    ("answer.value-tokens", {"answer": AnswerConfig(value_tokens=0)}, "0", ONE),
    ("answer.samples", {"answer": AnswerConfig(samples=-1)}, "-1", "it must be at least 0"),
    ("answer.samples", {"answer": AnswerConfig(samples=1025)}, "1025", "it must be at most 1024"),
    ("answer.samples", {"answer": AnswerConfig(samples=0, vote=True)}, "0", ONE),
    ("teacher.retries", {"teacher": TeacherConfig(retries=-1)}, "-1", "it must be at least 0"),
    ("gate.calibration", {"gate": GateConfig(tau="auto", calibration=-1)}, "-1", "it must be at least 0"),
    ("adapt.lr", {"adapt": AdaptConfig(lr=0.0)}, "0.0", ABOVE),
    ("adapt.lr", {"adapt": AdaptConfig(lr=-1e-4)}, "-0.0001", ABOVE),
    ("adapt.lr", {"adapt": AdaptConfig(lr=NAN)}, "nan", ABOVE),
    ("adapt.lr", {"adapt": AdaptConfig(lr=INF)}, "inf", ABOVE),
    ("adapt.alpha", {"adapt": AdaptConfig(alpha=0.0)}, "0.0", ABOVE),
    ("adapt.memory", {"adapt": AdaptConfig(memory=0.0)}, "0.0", ABOVE),
    ("adapt.memory", {"adapt": AdaptConfig(memory=1e300)}, "1e+300", ABOVE),
    ("adapt.kl", {"adapt": AdaptConfig(kl=1e300)}, "1e+300", LEAST),
    *[
        ("adapt.stop-below", {"adapt": AdaptConfig(stop_below=value)}, str(value), "it must be a number between ±1e+30")
        for value in (NAN, INF)
    ],
    *[
        ("gate.tau", {"gate": GateConfig(tau=value)}, str(value), "it must be a number or auto")
        for value in (NAN, INF, -INF, "most")
    ],
    ("synthesis.top-p", {"synthesis": SynthesisConfig(top_p=0.0)}, "0.0", "it must be above 0 and at most 1"),
    ("synthesis.top-p", {"synthesis": SynthesisConfig(top_p=1.1)}, "1.1", "it must be above 0 and at most 1"),
    ("synthesis.top-p", {"synthesis": SynthesisConfig(top_p=NAN)}, "nan", "it must be above 0 and at most 1"),
    *[
        ("teacher.timeout", {"teacher": TeacherConfig(timeout=value)}, str(value), UP_TO_A_DAY)
        for value in (0.0, NAN, 1e10, INF)
    ],
    ("teacher.price-in", {"teacher": TeacherConfig(price_in=NAN)}, "nan", LEAST),
    ("teacher.price-out", {"teacher": TeacherConfig(price_out=INF)}, "inf", LEAST),
    ("teacher.price-out", {"teacher": TeacherConfig(price_out=-1.0)}, "-1.0", LEAST),
    ("synthesis.temperature", {"synthesis": SynthesisConfig(temperature=-0.1)}, "-0.1", LEAST),
    ("synthesis.temperature", {"synthesis": SynthesisConfig(temperature=NAN)}, "nan", LEAST),
    ("synthesis.temperature", {"synthesis": SynthesisConfig(temperature=INF)}, "inf", LEAST),
    ("seed", {"seed": -1}, "-1", "it must be between 0 and 4294967295"),
    ("seed", {"seed": 2**32}, "4294967296", "it must be between 0 and 4294967295"),
]


@pytest.mark.parametrize(("name", "changes", "value", "rule"), REFUSED)
def test_values_that_no_run_can_have(name, changes, value, rule):
    with pytest.raises(InputError) as caught:
        check(replace(RunConfig(), **changes))
    assert str(caught.value) == f"--{name} is {value}; {rule}"


GATE, START = GateConfig(), AdaptConfig(start="sft")
IN_VAIN = [
    ({"gate": replace(GATE, budget=0.3)}, "--gate.budget is for choosing tau: it needs --gate.tau auto"),
    ({"gate": replace(GATE, labelled="there")}, "--gate.labelled is for choosing tau: it needs --gate.tau auto"),
    (
        {"gate": replace(GATE, tau="auto", select="all")},
        "--gate.select all adapts all inputs: not with --gate.tau auto",
    ),
    ({"gate": replace(GATE, tau="auto", budget=0.3, select="certain")}, "--gate.budget is of uncertain inputs: not"),
    ({"method": "tt-d", "synthesis": SynthesisConfig(label="gold")}, "not with --synthesis.source teacher"),
    ({"adapt": replace(START, adapters=2)}, "all that begin at --adapt.start and learn the same pairs are equal"),
    ({"adapt": replace(START, measure=("seeds",))}, "seeds compares adapters that begin differently"),
    ({"adapt": AdaptConfig(reset="never", measure=("seeds",)), "wave": 1}, "nor with --adapt.reset never"),
    ({"adapt": replace(START, l2=0.1)}, "--adapt.l2 holds adapters near the model without any"),
    (
        {"gate": replace(GATE, score="channel"), "adapt": AdaptConfig(accept=("repairs", "margin"))},
        "--adapt.accept margin needs scores that adapters change: not with --gate.score channel",
    ),
    (
        {"gate": replace(GATE, score="channel"), "adapt": AdaptConfig(adapters=2, combine="likelihood")},
        "--adapt.combine likelihood needs scores that adapters change: not with --gate.score channel",
    ),
    ({"gate": replace(GATE, tau="auto", labelled="there", select="certain")}, "--gate.labelled finds the tau"),
    ({"adapt": AdaptConfig(divide=True)}, "--adapt.divide is about several adapters"),
    ({"adapt": AdaptConfig(combine="likelihood")}, "--adapt.combine is about several adapters"),
    ({"answer": AnswerConfig(repair=True)}, "--answer.repair chooses among answers"),
    *(
        ({"method": "icl", "adapt": AdaptConfig(**setting)}, f"--adapt.{option} is about what is trained")
        for option, setting in {
            "measure": {"measure": ("kl",)}, "adapters": {"adapters": 2}, "stop-below": {"stop_below": 0.0},
            "kl": {"kl": 0.1}, "l2": {"l2": 0.1}, "save": {"save": True},
        }.items()
    ),
    ({"method": "tt-icl", "wave": 1, "adapt": AdaptConfig(reset="never")}, "--adapt.reset never is about what is"),
    ({"method": "tt-icl", "synthesis": SynthesisConfig(held_out=True)}, "--synthesis.held-out is about what is"),
    ({"adapt": AdaptConfig(targets=())}, "--adapt.targets is empty; name at least one of q, k"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), IN_VAIN)
def test_settings_that_would_do_nothing_are_refused(changes, why):
    with pytest.raises(InputError) as caught:
        check(replace(RunConfig(), **changes))
    assert why in str(caught.value)


def test_checks_are_named():
    for checks, message in (
        (("schema", "spelling"), "'spelling'; it must be one of schema, copy"),
        ((), "lacks schema"),
    ):
        with pytest.raises(InputError, match=f"--synthesis.checks .*{message}"):
            check(RunConfig(synthesis=SynthesisConfig(checks=checks)))


def test_the_smallest_and_largest_values_are_taken():
    synthesis = SynthesisConfig(k=1, tries=1, max_tokens=1, temperature=0.0, top_p=1.0)
    check(RunConfig(wave=1, seed=2**32 - 1, synthesis=synthesis, answer=AnswerConfig(max_tokens=1, value_tokens=1)))
    check(RunConfig(answer=AnswerConfig(samples=1 << 10), teacher=TeacherConfig(retries=0)))
    check(RunConfig(answer=AnswerConfig(samples=1, vote=True), teacher=TeacherConfig(retries=1 << 10)))
    check(RunConfig())


@pytest.mark.parametrize(
    ("wanted", "answers", "form"),
    [("auto", "keys", "request"), ("auto", "free", "pair"), ("pair", "keys", "pair"), ("request", "free", "request")],
)
def test_the_form_of_synthesis_follows_the_answers(wanted, answers, form):
    config = RunConfig(synthesis=SynthesisConfig(form=wanted), answer=AnswerConfig(form=answers))
    assert config.synthesis_form == form


def test_a_configuration_is_plain_values():
    values = RunConfig(wave=3).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["wave"] == 3 and values["gate"]["tau"] == 0.95 and values["adapt"]["rule"] == "adamw"


def test_a_synthesizer_of_other_arguments_is_refused_before_a_run():
    config = replace(RunConfig(), synthesis=SynthesisConfig(form="json:dumps"))
    with pytest.raises(InputError, match="'json:dumps' cannot be called with an input and the number of an"):
        find_parts(config, {})


def test_names_stand_for_objects():
    assert resolve("adamw", RULES, "update rule") is adamw
    assert resolve("json:dumps", RULES, "update rule") is json.dumps
    assert resolve("ttsi_jax.rules:adamw", {}, "update rule") is adamw


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ftrl", f"unknown update rule 'ftrl'. Known: {', '.join(RULES)}; or package.module:object"),
        ("adam", "unknown update rule 'adam'; did you mean 'adamw'? Known: adamw, sgd, "),
        ("", "unknown update rule ''. Known: adamw, sgd, "),
        (
            "no_such_module:f",
            "update rule 'no_such_module:f' cannot be imported: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "json:no_such_thing",
            "update rule 'json:no_such_thing' cannot be imported: AttributeError: module 'json' has no attribute",
        ),
        ("json:", "update rule 'json:' cannot be imported: "),
        (":f", "update rule ':f' cannot be imported: "),
        (".json:dumps", "update rule '.json:dumps' cannot be imported: "),
        ("this_module_exits:f", "update rule 'this_module_exits:f' cannot be imported: SystemExit: 0"),
    ],
)
def test_names_that_stand_for_nothing(name, message, tmp_path, monkeypatch):
    (tmp_path / "this_module_exits.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as caught:
        resolve(name, RULES, "update rule")
    assert str(caught.value).startswith(message)
