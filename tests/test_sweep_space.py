"""From flags and a file to the points of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.config import load_config
from edgeprune.errors import UsageError
from edgeprune.flags import Flags
from edgeprune.sweeping.space import Space, read_space


def space(tmp_path: Path, text: str = "", **flags: dict[str, object]) -> Space:
    (tmp_path / "edgeprune.toml").write_text(text, encoding="utf-8")
    return read_space(tmp_path / "edgeprune.toml", dict(flags))


def test_commas_part_the_values_of_a_setting(tmp_path: Path) -> None:
    found = space(tmp_path, prune={"speedup": "1.5,2,3", "criterion": "l2,taylor"}, recover={"recipe": "finetune"})
    assert [dict(point.choices) for point in found.points][:3] == [
        {"prune.speedup": "1.5", "prune.criterion": "l2"},
        {"prune.speedup": "1.5", "prune.criterion": "taylor"},
        {"prune.speedup": "2", "prune.criterion": "l2"},
    ]
    assert len(found.points) == len({point.name for point in found.points}) == 6
    assert {point.config.recover.recipe for point in found.points if point.config} == {"finetune"}


def test_the_file_has_lists_in_tables_of_their_own(tmp_path: Path) -> None:
    swept = '[sweep.prune]\nspeedup = [1.5, "2x"]\nignore = [["a"], ["a", "b"]]\n'
    text = f"[prune]\nratio = 0.3\n[sweep]\npoints = 5\n{swept}"
    found = space(tmp_path, text)
    configs = [point.config for point in found.points]
    assert [(config.prune.speedup, config.prune.ignore) for config in configs if config] == [
        (1.5, ("a",)),
        (1.5, ("a", "b")),
        (2.0, ("a",)),
        (2.0, ("a", "b")),
    ]
    assert found.base.sweep.points == 5
    assert all(config.prune.ratio is None for config in configs if config)  # one goal: the swept one


def test_the_command_line_takes_the_place_of_the_files_values(tmp_path: Path) -> None:
    text = '[sweep.prune]\nspeedup = [1.5, 2]\ncriterion = ["l1", "l2"]\n'
    found = space(tmp_path, text, prune={"ratio": "0.5", "criterion": "fpgm,lamp"})
    assert [(p.choices, p.config.prune.ratio if p.config else None) for p in found.points] == [
        ({"prune.criterion": "fpgm"}, 0.5),
        ({"prune.criterion": "lamp"}, 0.5),
    ]


def test_the_same_settings_are_one_point(tmp_path: Path) -> None:
    assert len(space(tmp_path, prune={"speedup": "2,2x,2.0"}).points) == 1


def test_a_combination_that_its_settings_forbid_is_a_point_with_its_reason(tmp_path: Path) -> None:
    found = space(tmp_path, prune={"scope": "channels,blocks", "iterations": "1,2"})
    wrong = [point for point in found.points if point.config is None]
    assert [dict(point.choices) for point in wrong] == [{"prune.scope": "blocks", "prune.iterations": "2"}]
    assert "iterations" in wrong[0].reason


@pytest.mark.parametrize(
    ("flags", "text", "word"),
    [
        ({"prune": {"scope": "channels,bloks"}}, "", "--scope bloks: must be one of"),
        ({"prune": {"speedup": "1.5,,2"}}, "", "a value is missing"),
        ({"prune": {"speedup": "2"}}, "", "a sweep needs a setting with several values"),
        ({"attack": {"eps": "4/255,8/255"}}, "", "eps"),
        ({}, "[sweep.prune]\nspedup = [1, 2]\n", "unknown setting: sweep.prune.spedup"),
        ({}, "[sweep.prune]\nspeedup = 2\n", "must be a list"),
        ({}, "[sweep.attack]\neps = ['1/255']\n", "attack"),
    ],
)
def test_a_mistake_is_an_error_at_once(flags: Flags, text: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=word):
        space(tmp_path, text, **flags)


def test_compress_reads_a_file_with_a_sweep_in_it(tmp_path: Path) -> None:
    (tmp_path / "edgeprune.toml").write_text('[sweep.prune]\ncriterion = ["l1", "l2"]\n', encoding="utf-8")
    assert load_config(tmp_path / "edgeprune.toml", {}).prune.criterion == "l2"
    (tmp_path / "edgeprune.toml").write_text("[sweep.prune]\ncriterion = []\n", encoding="utf-8")
    with pytest.raises(UsageError, match="criterion has no value"):
        load_config(tmp_path / "edgeprune.toml", {})


def test_a_sweep_does_not_go_where_the_file_has_compress_go(tmp_path: Path) -> None:
    text = '[run]\nout = "here"\n'
    assert space(tmp_path, text, prune={"ratio": "0.2,0.5"}).base.run.out == tmp_path / "here-sweep"
    given = space(tmp_path, text, prune={"ratio": "0.2,0.5"}, run={"out": "there"})
    assert given.base.run.out == Path("there")
    assert given.points[0].arguments == ("--config", str(tmp_path / "edgeprune.toml"), "--ratio", "0.2")
