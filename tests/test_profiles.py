"""Hardware profiles: every number has a source, every mistake in a user's file is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.errors import UsageError
from edgeprune.latency.profiles import Profile, list_profiles, load_profile

BOARD = """
name = "board"
description = "a board of one's own"
measured = "remote"
architecture = "aarch64"
cores = 4

[widths.any]
value = 8
unit = "channels"
kind = "estimated"
source = "the kernels' documentation"

[widths.onnxruntime]
value = 16
unit = "channels"
kind = "measured-remote"
source = "a sweep on the board"

[[figures]]
name = "memory copy"
value = 2.7
unit = "GB/s"
kind = "published"
source = "the data sheet"
"""


def written(folder: Path, text: str) -> str:
    path = folder / "board.toml"
    path.write_text(text)
    return str(path)


def test_shipped_profiles_load_with_this_machine_first() -> None:
    names = [profile.name for profile in list_profiles()]
    boards = ["jetson-nano", "jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-5", "rk3399", "rk3588"]
    assert names == ["cpu", *sorted([*boards, "intel-n100", "snapdragon-888", "stm32h7", "zen4-server"])]
    assert [profile.name for profile in list_profiles() if profile.is_local] == ["cpu"]
    assert [profile.name for profile in list_profiles() if profile.measured == "never"] == ["stm32h7"]


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda profile: profile.name)
def test_every_shipped_number_names_a_public_source(profile: Profile) -> None:
    numbers = [*profile.figures, *profile.widths.values()]
    assert all(len(number.source) > 10 and number.unit for number in numbers)
    assert all(figure.source.startswith("https://") for figure in profile.figures if figure.kind == "published")
    assert load_profile(profile.name) == profile
    assert Profile.model_validate_json(profile.to_json()) == profile


def test_multiple_falls_back_to_the_one_for_any_runtime(tmp_path: Path) -> None:
    profile = load_profile(written(tmp_path, BOARD))
    assert (profile.multiple_for("onnxruntime"), profile.multiple_for("openvino")) == (16, 8)
    assert profile.info("onnxruntime").channel_multiple == 16
    assert profile.info().channel_multiple == profile.channel_multiple == 8
    assert not profile.is_local


def test_unknown_target_names_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean raspberry-pi-5") as error:
        load_profile("raspbery-pi5")
    assert "board.toml" in str(error.value)


def test_missing_file_lists_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such hardware profile") as error:
        load_profile(str(tmp_path / "none.toml"))
    assert "rk3588" in error.value.hint


def test_folder_in_place_of_a_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        load_profile(str(tmp_path))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('source = "the data sheet"', "", r"lacks figures\.0\.source"),
        ('source = "the data sheet"', 'source = ""', r"figures\.0\.source"),
        ("value = 2.7", "value = -1", r"figures\.0\.value"),
        ("value = 2.7", "value = nan", r"figures\.0\.value"),
        ("value = 16", 'value = "wide"', r"widths\.onnxruntime\.value"),
        ('kind = "published"', 'kind = "rumour"', r"figures\.0\.kind"),
        ('measured = "remote"', 'measured = "elsewhere"', "measured"),
        ("cores = 4", "cores = 0", "cores"),
        ("cores = 4", "coers = 4", "unknown key in the hardware profile .*coers\n.*did you mean cores"),
        ('unit = "GB/s"', 'unit = "GB/s"\nvalu = 3', r"figures\.0\.valu\n.*did you mean value"),
        ("[widths.any]", "[widths.openvino]", r"widths\.any is missing"),
        ("[widths.any]", "[widths.any", "is not TOML"),
    ],
)
def test_mistake_in_a_file_is_named_with_its_place(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in BOARD
    with pytest.raises(UsageError, match=message) as error:
        load_profile(written(tmp_path, BOARD.replace(before, after)))
    assert "board.toml" in str(error.value)
