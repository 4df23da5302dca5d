"""What the check of determinism counts."""

from check_determinism import difference
from ttsi_jax import Record

SURE = Record("a", "t", "q", log_likelihoods=[-1.0, -2.0], uncertainty=0.5, losses=[3.0, None], pick="f", calls=[])
CLOSE = Record("b", "t", "q", log_likelihoods=[-1.0, -1.0004], uncertainty=0.5, pick="f")
EXPECTED = {"a": SURE, "b": CLOSE}


def changed(id: str, **values: object) -> dict[str, Record]:
    return EXPECTED | {id: Record(**(vars(EXPECTED[id]) | values))}


def test_equal_records_are_counted():
    assert difference(EXPECTED, EXPECTED, tau=0.9) == (2, 0.0, 0, 0)


def test_floats_are_compared_by_their_distance():
    identical, largest, discrete, _ = difference(changed("a", losses=[3.5, None]), EXPECTED, tau=0.9)
    assert (identical, largest, discrete) == (1, 0.5, 0)


def test_a_loss_that_is_missing_on_one_side_is_another_decision():
    assert difference(changed("a", losses=[3.0, 2.0]), EXPECTED, tau=0.9).discrete == 1
    assert difference(changed("a", losses=[3.0]), EXPECTED, tau=0.9).discrete == 1


def test_another_decision_is_a_near_tie_only_where_a_recorded_one_was_near():
    assert difference(changed("a", pick="g"), EXPECTED, tau=0.9)[2:] == (1, 0)
    assert difference(changed("b", pick="g"), EXPECTED, tau=0.9)[2:] == (1, 1)
    assert difference(changed("a", calls=None), EXPECTED, tau=0.5004)[2:] == (1, 1)
