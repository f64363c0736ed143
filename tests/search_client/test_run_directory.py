from dataclasses import replace
from pathlib import Path

import pytest

from search_client.config import SearchConfig, resolve
from search_client.decoding import DecodingPass
from search_client.durable_files import write_text
from search_client.errors import AnotherSearch
from search_client.run_directory import RunDirectory, write_json
from search_client.search_problem import Evaluated
from search_client.spaces import load_space

TINY = str(Path(__file__).parent / "tiny.toml")


def settings(**changes: object) -> SearchConfig:
    return resolve({"space": TINY, "data": "digits"} | changes, file=None)


def evaluated(generation: int) -> Evaluated:
    return Evaluated(("IBConv_K3_E3", "Identity"), 1.5, 0.9, generation)


def test_the_same_settings_take_up_the_search(tmp_path: Path) -> None:
    for _ in range(2):
        with RunDirectory(tmp_path / "run", settings()) as directory:
            assert directory.table is None


def test_settings_may_be_corrected_until_something_is_measured_or_trained(tmp_path: Path) -> None:
    """A typo in the first command must not cost the directory."""
    with RunDirectory(tmp_path / "run", settings(seed=1)) as directory:
        directory.record_data({"sha256": "1" * 64})
        directory.stage(1).record_space(load_space(TINY))
    with RunDirectory(tmp_path / "run", settings(seed=2)) as directory:
        directory.record_data({"sha256": "2" * 64})
        assert "seed = 2" in (directory.path / "config.toml").read_text()


def test_a_search_stopped_in_its_very_first_write_can_be_started_again(tmp_path: Path) -> None:
    (tmp_path / "config.toml.unfinished").write_text("spa")
    with RunDirectory(tmp_path, settings()):
        assert (tmp_path / "config.toml").exists()


def test_other_data_or_another_space_than_the_search_began_with_are_refused(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", settings()) as directory:
        directory.record_data({"sha256": "1" * 64})
        directory.record_data({"sha256": "1" * 64})
        with pytest.raises(AnotherSearch, match=r"data\.json says that this search began with something else"):
            directory.record_data({"sha256": "2" * 64})
        space = load_space(TINY)
        directory.stage(1).record_space(space)
        reordered = [replace(layer, choices=layer.choices[::-1]) for layer in space.layers]
        with pytest.raises(AnotherSearch, match=r"space\.json says"):
            directory.stage(1).record_space(replace(space, layers=tuple(reordered)))


def test_a_pass_over_all_images_is_kept_when_settings_are_corrected(tmp_path: Path) -> None:
    """It may have taken half an hour."""
    found = DecodingPass("1" * 64, {"train/cat/0.jpg": "image file is truncated"})
    with RunDirectory(tmp_path / "run", settings(seed=1)) as directory:
        assert directory.decoding() is None
        directory.save_decoding(found)
        directory.record_data({"sha256": "1" * 64})
    with RunDirectory(tmp_path / "run", settings(seed=2)) as directory:
        assert directory.decoding() == found


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", settings(seed=1)) as directory:
        directory.stage(1).checkpoint.touch()
    with pytest.raises(AnotherSearch, match="belongs to another search: seed is 1 there and 2 here"):
        RunDirectory(tmp_path / "run", settings(seed=2))


def test_a_search_that_needed_too_much_memory_goes_on_with_less(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", settings(evaluation_memory_mb=4096)) as directory:
        directory.stage(1).checkpoint.touch()
    with RunDirectory(tmp_path / "run", settings(evaluation_memory_mb=256)):
        pass


def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(AnotherSearch, match="holds files, but none of a search"):
        RunDirectory(tmp_path, settings())
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "config.toml").exists()


def test_two_searches_cannot_run_in_one_directory(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", settings()), pytest.raises(AnotherSearch, match="A search is running in"):
        RunDirectory(tmp_path / "run", settings())


def test_history_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", settings()) as directory:
        stage = directory.stage(1)
        assert stage.history() == []
        stage.append_history([evaluated(0), evaluated(1)])
        stage.append_history([evaluated(2)])
        assert directory.stage(1).history() == [evaluated(0), evaluated(1), evaluated(2)]


def test_a_line_cut_off_by_a_kill_is_dropped_and_overwritten(tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "run", settings()) as directory:
        stage = directory.stage(1)
        stage.append_history([evaluated(0), evaluated(1)])
        path = stage.path / "history.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        assert stage.history() == [evaluated(0)]
        stage.append_history([evaluated(1)])
        assert stage.history() == [evaluated(0), evaluated(1)]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "final.json"
    write_json(path, {"accuracy": 0.9})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"accuracy": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_bytes() == before
