from pathlib import Path

import pytest

from search_client.durable_files import write_text, written_whole


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write_text(tmp_path / "a", text)
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_text() == text


def write_half_of(path: Path) -> None:
    with written_whole(path) as unfinished:
        unfinished.write_text("half of the new o")
        raise OSError(28, "No space left on device")


def test_what_cannot_be_finished_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with pytest.raises(OSError, match="No space left"):
        write_half_of(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
