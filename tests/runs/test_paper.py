from dataclasses import replace

from ttsi_jax.config import RunConfig
from ttsi_jax.runs.paper import beside
from ttsi_jax.uncertainty import GateConfig

QWEN = {"model": "Qwen/Qwen2.5-1.5B-Instruct", "task": "sealtools"}


def config(**changes):
    return replace(RunConfig(), **changes).to_dict()


def test_the_default_settings_are_the_papers():
    published, differs = beside(QWEN | config(), 294)
    assert (published.accuracy, published.gain, differs) == ("72.43", 5.76, ())
    assert beside(QWEN | config(method="base"), 294).differs == ()


def test_each_gate_has_its_own_figure():
    gates = {"73.47": {"select": "all"}, "70.07": {"select": "certain"}, "68.10": {"tau": 0.35}}
    for accuracy, gate in gates.items():
        assert beside(QWEN | config(gate=GateConfig(**gate)), 294).published.accuracy == accuracy
    assert beside(QWEN | config(gate=GateConfig(tau=0.5)), 294) is None


def test_what_differs_is_named():
    adapt = replace(RunConfig().adapt, scope="suffix", lr=1e-3)
    found = beside({"model": "smollm2-135m-instruct", "task": "sealtools"} | config(adapt=adapt), 64)
    assert found.differs == (
        "model smollm2-135m-instruct, there Qwen2.5-1.5B-Instruct",
        "64 inputs, there 294",
        "adapt.lr 0.001, there 0.0001",
        "adapt.scope suffix, there all",
    )


def test_tasks_and_settings_of_which_nothing_is_known():
    assert beside({"task": "bfcl:multiple"} | config(), 200) is None
    assert beside({}, 0) is None
    assert beside({"task": "sealtools", "method": "tt-si", "gate": 1}, 0) is None
