from dataclasses import replace

import pytest

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.config import RunConfig
from ttsi_jax.quality.presets import PRESETS
from ttsi_jax.runs.paper import BENCHMARKS, beside, beside_mean
from ttsi_jax.synthesis import SynthesisConfig, TeacherConfig
from ttsi_jax.uncertainty import GateConfig

QWEN = {"model": "Qwen/Qwen2.5-1.5B-Instruct", "task": "sealtools", "dtype": "bfloat16"}
STARTED = AdaptConfig(start="runs/sft")


def config(**changes):
    return QWEN | replace(RunConfig(), **changes).to_dict()


def test_the_default_settings_are_the_papers():
    published, differs = beside(config(), 294)
    assert (published.accuracy, published.gain, differs) == ("72.43", 5.76, {})
    assert beside(config(method="base"), 294) == (("direct", "66.4 to 66.7", None, "Qwen2.5-1.5B-Instruct"), {})


def test_what_a_default_comes_to_is_no_other_setting():
    explicit = {"adapt": AdaptConfig(lr=1e-4), "synthesis": SynthesisConfig(source="self", form="pair")}
    assert beside(config(**explicit), 294).differs == {}


def test_each_gate_has_its_own_figure():
    gates = {"73.47": {"select": "all", "tau": 0.5}, "70.07": {"select": "certain"}, "68.10": {"tau": 0.35}}
    for accuracy, gate in gates.items():
        published, differs = beside(config(gate=GateConfig(**gate)), 294)
        assert (published.accuracy, differs) == (accuracy, {})


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": GateConfig(tau=0.5)},
        {"gate": GateConfig(tau="auto")},
        {"gate": GateConfig(tau=0.35, select="certain")},
        {"method": "base", "answer": AnswerConfig(samples=5, vote=True)},
        {"answer": AnswerConfig(samples=5, vote=True)},
        {"method": "tt-d"},
        {"adapt": STARTED},
        {"method": "tt-icl"},
    ],
)
def test_what_the_paper_has_no_figure_for_has_none(changes):
    assert beside(config(**changes), 294) is None


def test_what_differs_is_named_with_both_values():
    adapt = replace(RunConfig().adapt, scope="suffix", lr=1e-3, accept=("valid",), memory=9.0, save=True)
    gate = GateConfig(estimator="negentropy")
    found = beside(config(adapt=adapt, gate=gate, wave=4, seed=3) | {"model": "smollm2-135m-instruct"}, 64)
    assert found.differs == {
        "model": ("smollm2-135m-instruct", "Qwen2.5-1.5B-Instruct"),
        "inputs": ("64", "294"),
        "gate.estimator": ('"negentropy"', '"margin"'),
        "adapt.scope": ('"suffix"', '"all"'),
        "adapt.lr": ("0.001", "0.0001"),
        "adapt.accept": ('["valid"]', "[]"),
    }
    recommended = beside(QWEN | PRESETS["recommended"].to_dict(), 294).differs
    assert recommended.keys() > {"synthesis.k", "synthesis.checks", "gate.estimator", "answer.form"}


def test_where_nothing_is_trained_only_what_decides_answers_differs():
    changes = {"adapt": AdaptConfig(rank=4), "synthesis": SynthesisConfig(k=3), "gate": GateConfig(tau=0.2)}
    assert beside(config(method="base", **changes), 294).differs == {}
    found = beside(config(method="base", answer=AnswerConfig(form="keys"), **changes), 294)
    assert found.differs == {"answer.form": ('"keys"', '"free"')}


def test_a_base_in_int8_is_not_the_papers():
    assert "int8" in beside(config(method="base") | {"dtype": "int8 with a scale per channel"}, 294).differs["dtype"][0]


def test_a_larger_model_has_its_own_figure_where_there_is_one():
    large = {"model": "Qwen/Qwen2.5-7B-Instruct"}
    published, differs = beside(config() | large, 294)
    assert (published.method, published.gain, differs) == ("TT-SI, 7B", 3.02, {})
    published, differs = beside(config(method="base") | large, 294)
    assert published.method == "direct" and differs["model"] == (large["model"], "Qwen2.5-1.5B-Instruct")
    assert beside(config(gate=GateConfig(select="all")) | large, 294).published.gain is None


def test_an_sft_run_stands_beside_sft():
    run = config(method="base", adapt=STARTED)
    assert beside(run | {"trained_on": 13_204}, 294) == (("SFT on 13k", "70.20", None, "Qwen2.5-1.5B-Instruct"), {})
    assert beside(run, 294).differs == {"trained on": ("unknown", "13k")}
    found = beside(run | {"trained_on": 64, "upper_bound": "of 2"}, 294, n_seen=2)
    assert found.published.method == "SFT on 13k"
    assert found.differs == {"trained on": ("64", "13k"), "labels seen": ("2", "0")}
    other = config(method="base", adapt=replace(STARTED, scope="suffix", rank=4))
    assert beside(other | {"trained_on": 13_000}, 294).differs.keys() == {"adapt.scope", "adapt.rank"}


def test_a_run_trained_on_its_own_labels_stands_beside_the_same():
    run = config(method="base", adapt=STARTED) | {"trained_on": 294}
    assert beside(run, 294, n_seen=294).published.accuracy == "78.89"
    assert beside(run, 294, n_seen=290).differs == {"labels seen": ("290", "294")}


def test_what_an_older_run_does_not_say_is_as_it_was():
    old = config()
    del old["adapt"]["accept"], old["unmatchable"], old["dtype"]
    assert beside(old, 294).differs == {}
    old["synthesis"]["renamed since"] = True
    assert beside(old, 294).differs == {"synthesis.renamed since": ("true", "(absent)")}


def test_tasks_of_which_nothing_is_known():
    assert beside(config() | {"task": "bfcl:multiple"}, 200) is None
    assert beside({}, 0) is None


JUNK = [None, 1, 0.5, float("nan"), True, "x", [], [1], {}, {"tau": [], "select": {}, "start": 3, "vote": "no", "": {}}]


@pytest.mark.parametrize("junk", JUNK, ids=repr)
@pytest.mark.parametrize("method", ["base", "tt-si", ["tt-si"]])
def test_any_values_at_all_are_taken(junk, method):
    for name in config() | {"trained_on": 0}:
        beside(config(method=method) | {"adapt": {"start": "a"}, "trained_on": 1} | {name: junk}, 0)
        beside(config(method=method) | {name: junk}, 0)
    beside({"task": "sealtools", "method": method} | dict.fromkeys(("gate", "adapt", "synthesis", "answer"), junk), 0)


def test_the_papers_mean_stands_beside_its_four_benchmarks_alone():
    sizes = {"sealtools": 294, "apibank": 100, "toolalpaca": 64, "nexusraven": 318}
    assert sizes.keys() == BENCHMARKS
    runs = [(config() | {"task": task}, n, 0) for task, n in sizes.items()]
    assert beside_mean(runs) == (
        ("TT-SI", "60.14", 5.48, "Qwen2.5-1.5B-Instruct"),
        {"inputs of toolalpaca": ("64", "114")},
    )
    direct = beside_mean([(config(method="base") | {"task": task}, n, 0) for task, n in sizes.items()])
    assert direct.published.accuracy == "54.66"
    assert (
        beside_mean(runs[:3]) is None and beside_mean([*runs[:3], (config() | {"task": "bfcl:simple"}, 9, 0)]) is None
    )
    assert beside_mean([*runs[:3], (config(method="base") | {"task": "nexusraven"}, 318, 0)]) is None


@pytest.mark.parametrize(
    ("method", "vote", "gain"), [("tt-d", False, 6.42), ("tt-si", True, 3.85), ("tt-d", True, 5.53)]
)
def test_a_teacher_and_votes_have_means_of_their_own(method, vote, gain):
    def mean(*seen, **changes):
        voted = AnswerConfig(samples=5, vote=vote)
        own = config(**{"method": method, "teacher": TeacherConfig(model="gpt-5-mini"), "answer": voted} | changes)
        sizes = {"sealtools": 294, "apibank": 100, "toolalpaca": 114, "nexusraven": 318}
        return beside_mean([(own | {"task": task}, n, *(seen or (0,))) for task, n in sizes.items()])

    assert (mean().published.gain, mean().differs) == (gain, {})
    assert mean(gate=GateConfig(tau=0.5)) is mean(gate=GateConfig(select="all")) is mean(method="tt-icl") is None
    assert mean(3).differs == {"labels seen": ("3", "0")}
    recorded = mean(teacher=TeacherConfig(model="small"), synthesis=SynthesisConfig(source="recorded", file="x"))
    theirs = "teacher" if method == "tt-d" else "self"
    assert recorded.differs["synthesis.source"] == ('"recorded"', f'"{theirs}"')
    assert recorded.differs.get("teacher.model") == (("small", "gpt-5-mini") if method == "tt-d" else None)
