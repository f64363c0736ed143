"""Files as subjects: named by their bytes alone."""

import pytest
from pydantic import ValidationError

from latency_contract.canonical import content_hash
from latency_contract.model_files import TFLiteModel
from latency_contract.operators import subject_adapter


def test_a_file_is_a_subject_that_its_hash_identifies() -> None:
    file = TFLiteModel(sha256="ab" * 32)
    assert file.key == "TFLite_abababababab"
    assert file.id == content_hash({"kind": "tflite", "sha256": "ab" * 32})
    assert subject_adapter.validate_json(file.model_dump_json()) == file


@pytest.mark.parametrize("sha256", ["", "ab", "AB" * 32, "../" * 21 + "x"])
def test_what_is_no_hash_names_no_file(sha256: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        TFLiteModel(sha256=sha256)
