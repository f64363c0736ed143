import json
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from latency_contract.operators import IBConv, Network
from latency_contract.tables import LatencyQuery
from latency_service import subjects
from latency_service.routes import latencies

Make = Callable[..., IBConv]


def test_a_question_reads_the_same_whether_or_not_its_subjects_were_read_before(operator: Make) -> None:
    asked = (operator(), operator(height=2), Network(operators=(operator(),)))
    text = LatencyQuery(device="Pixel 3", subjects=asked).model_dump_json()
    for _ in range(2):
        assert latencies.LatencyQuery.model_validate(json.loads(text)).subjects == asked


def test_an_operator_out_of_bounds_is_refused_as_the_contract_does_each_time(operator: Make) -> None:
    question = {"device": "Pixel 3", "subjects": [operator().model_dump(mode="json") | {"kernel": 4}]}
    latencies.LatencyQuery.model_validate(question | {"subjects": [operator().model_dump(mode="json")]})
    with pytest.raises(ValidationError) as expected:
        LatencyQuery.model_validate(question)
    for _ in range(2):
        with pytest.raises(ValidationError) as refused:
            latencies.LatencyQuery.model_validate(question)
        assert refused.value.errors() == expected.value.errors()


def test_of_subjects_so_many_are_remembered_and_no_long_ones(operator: Make) -> None:
    subjects._read_short.cache_clear()
    short = operator().model_dump_json()
    assert subjects.read_subject(short) is subjects.read_subject(short)
    long = Network(operators=(operator(),) * 10).model_dump_json()
    assert subjects.read_subject(long) is not subjects.read_subject(long)
    assert subjects._read_short.cache_info().maxsize == subjects.REMEMBERED
