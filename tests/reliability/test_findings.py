"""What fuzzing found stays found, and a short round of it runs with the tests."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reliability.readers import READERS, SEEDS

FINDINGS = sorted((Path(__file__).parent / "findings").glob("*-*"))


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda path: path.name)
def test_a_finding_is_read_or_refused(finding):
    READERS[finding.name.rpartition("-")[0]](finding.read_bytes())


@pytest.mark.parametrize("name", READERS)
def test_good_data_is_read(name):
    for seed in SEEDS[name]:
        READERS[name](seed)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=200)
@given(data=st.data())
def test_damaged_data_is_read_or_refused(name, data):
    content = bytearray(data.draw(st.sampled_from(SEEDS[name])))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    READERS[name](bytes(content[: data.draw(st.integers(0, len(content)))]))
