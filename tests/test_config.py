"""Settings: a flag wins over the file, the file over the default; units, exact fractions, words that help."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.config import Config, flag_of, load_config, settings_of
from edgeprune.errors import UsageError
from edgeprune.types import Goal

SETTINGS = [(section, name) for section in Config.model_fields for name in settings_of(section)]


def write(folder: Path, text: str, name: str = "edgeprune.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def from_text(folder: Path, text: str) -> Config:
    return load_config(write(folder, text), {})


# ------------------------------------------------------------------------------------------------ every setting


@pytest.mark.parametrize(("section", "name"), SETTINGS)
def test_every_setting_explains_itself(section: str, name: str) -> None:
    words = settings_of(section)[name].description
    assert words is not None
    assert len(words) > 8
    assert words.endswith(".")


def test_every_flag_is_unique() -> None:
    counts = Counter(flag_of(section, name) for section, name in SETTINGS)
    reserved = {"config", "json", "gate", "debug", "help", "against", "accuracy", "gradients", "evidence", "artifact"}
    assert [flag for flag, count in counts.items() if count > 1 or flag in reserved] == []


def test_the_defaults_are_a_whole_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None, {}) == Config()
    assert Config().prune.goal() == Goal("ratio", 0.5)
    assert Config().budget.limits() == {}


# --------------------------------------------------------------------------------------------------- precedence


def test_the_flag_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, "[attack]\nsteps = 7\nrestarts = 3\n")
    config = load_config(path, {"attack": {"steps": "9"}})
    assert (config.attack.steps, config.attack.restarts, config.attack.norm) == (9, 3, "linf")


def test_the_file_of_the_current_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "[run]\nseed = 5\n")
    monkeypatch.chdir(tmp_path)
    assert load_config(None, {}).run.seed == 5
    assert load_config(write(tmp_path, "", "other.toml"), {}).run.seed == 0


def test_a_goal_flag_replaces_the_goal_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[prune]\nratio = 0.5\ncriterion = 'l1'\n")
    config = load_config(path, {"prune": {"speedup": "2x"}})
    assert config.prune.goal() == Goal("speedup", 2.0)
    assert config.prune.criterion == "l1"


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("ratio = 0.3", Goal("ratio", 0.3)),
        ("macs_ratio = 0.4", Goal("macs_ratio", 0.4)),
        ('latency_ms = "3.5 ms"', Goal("latency_ms", 3.5)),
        ('speedup = "1.5x"', Goal("speedup", 1.5)),
    ],
)
def test_each_goal_is_understood(text: str, goal: Goal, tmp_path: Path) -> None:
    assert from_text(tmp_path, f"[prune]\n{text}\n").prune.goal() == goal


def test_paths_in_the_file_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    text = (
        '[data]\ntrain = "a.npz"\ntest = "/data/b.npz"\n'
        '[run]\nout = "here"\ntarget = "board.toml"\n[model]\narch = "net.py:Net"\n'
    )
    path = write(tmp_path / "sub", text)
    monkeypatch.chdir(tmp_path)
    config = load_config(path.relative_to(tmp_path), {})
    assert config.data.train == Path("sub/a.npz")
    assert config.data.test == Path("/data/b.npz")
    assert config.run.out == Path("sub/here")
    assert config.run.target == "sub/board.toml"
    assert config.model.arch == "sub/net.py:Net"


def test_files_of_code_and_of_held_inputs_are_relative_to_the_file(tmp_path: Path) -> None:
    text = (
        '[model]\narch = "./x/nets.py:build"\ntrust = ["nets.py", "./x/nets.py", "/abs/nets.py", "my.nets"]\n'
        'held = "held.npz"\n[data]\ntest = "torchvision:CIFAR10:cifar"\n'
    )
    config = from_text(tmp_path, text)
    assert config.model.arch == f"{tmp_path}/x/nets.py:build"
    assert config.model.trust == (f"{tmp_path}/nets.py", f"{tmp_path}/x/nets.py", "/abs/nets.py", "my.nets")
    assert config.model.held == tmp_path / "held.npz"
    assert str(config.data.test) == f"torchvision:CIFAR10:{tmp_path}/cifar"


def test_trust_that_is_no_list_is_still_explained(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.trust = .*must be a list of text"):
        from_text(tmp_path, '[model]\ntrust = "nets.py"\n')


def test_names_in_the_file_are_not_paths(tmp_path: Path) -> None:
    text = '[data]\ntrain = "mine.data:train"\n[run]\ntarget = "cpu"\n[model]\narch = "torchvision:resnet18"\n'
    config = from_text(tmp_path, text)
    assert (str(config.data.train), config.run.target, config.model.arch) == (
        "mine.data:train",
        "cpu",
        "torchvision:resnet18",
    )


def test_paths_on_the_command_line_are_relative_to_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    config = load_config(write(tmp_path / "sub", ""), {"data": {"train": "a.npz"}})
    assert config.data.train == Path("a.npz")


# -------------------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("accuracy_drop", '"2 pt"', 0.02),
        ("accuracy_drop", '"7pt"', 0.07),
        ("accuracy_drop", '"0.5 %"', 0.005),
        ("accuracy_drop", "0.02", 0.02),
        ("accuracy_drop", "0", 0.0),
        ("speedup", '"1.5x"', 1.5),
        ("speedup", "2", 2.0),
        ("latency_ms", '"3.5 ms"', 3.5),
        ("latency_ms", '"0.5 s"', 500.0),
        ("latency_ms", "4", 4.0),
        ("size_bytes", '"500 kB"', 500_000.0),
        ("size_bytes", '"1.5 MB"', 1_500_000.0),
        ("size_bytes", '"2 KiB"', 2048.0),
        ("size_bytes", '"1MiB"', 1048576.0),
        ("size_bytes", '"300 B"', 300.0),
    ],
)
def test_units_are_read_exactly(key: str, text: str, value: float, tmp_path: Path) -> None:
    assert from_text(tmp_path, f"[budget]\n{key} = {text}\n").budget.limits() == {key: value}
    assert load_config(tmp_path / "edgeprune.toml", {"budget": {key: text.strip('"')}}).budget.limits() == {key: value}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("accuracy_drop", '"2 points"'),
        ("accuracy_drop", '"pt"'),
        ("accuracy_drop", '"1,5 pt"'),
        ("accuracy_drop", "1"),
        ("accuracy_drop", "-0.01"),
        ("accuracy_drop", "nan"),
        ("speedup", '"0x"'),
        ("speedup", '"inf"'),
        ("latency_ms", '"3 ns"'),
        ("size_bytes", '"500 kb"'),
        ("size_bytes", "true"),
        ("size_bytes", "[1]"),
        ("confidence", "0.5"),
    ],
)
def test_what_is_no_such_quantity_is_refused_by_name(key: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"budget\.{key}"):
        from_text(tmp_path, f"[budget]\n{key} = {text}\n")


@pytest.mark.parametrize(
    ("text", "exact"),
    [('"8/255"', Fraction(8, 255)), ('"8 / 255"', Fraction(8, 255)), ("0.03", Fraction(3, 100)), ("1", Fraction(1))],
)
def test_epsilon_is_exact(text: str, exact: Fraction, tmp_path: Path) -> None:
    attack = from_text(tmp_path, f"[attack]\neps = {text}\n").attack
    assert Fraction(attack.eps) == exact
    assert attack.epsilon == float(exact)


def test_a_fraction_is_kept_as_it_was_written() -> None:
    assert Config.model_validate({"attack": {"eps": "3 / 255"}}).attack.eps == "3/255"


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_every_fraction_survives_as_text(numerator: int, denominator: int) -> None:
    config = Config.model_validate({"attack": {"eps": f"{numerator}/{denominator}"}})
    assert Fraction(config.attack.eps) == Fraction(numerator, denominator)
    assert Config.model_validate(config.model_dump()) == config


@given(st.text(max_size=12))
def test_no_text_makes_epsilon_crash(text: str) -> None:
    try:
        config = load_config(Path("/dev/null"), {"attack": {"eps": text}})
    except UsageError:
        return
    assert config.attack.epsilon > 0


# -------------------------------------------------------------------------------------------------------- words


def test_what_is_wrong_in_the_file_names_the_file_and_what_in_a_flag_the_flag(tmp_path: Path) -> None:
    path = write(tmp_path, "[attack]\nsteps = 0\n")
    with pytest.raises(UsageError) as from_file:
        load_config(path, {})
    assert str(from_file.value) == f"attack.steps = 0: must be above 0\n  in {path}"
    with pytest.raises(UsageError) as from_flag:
        load_config(path, {"attack": {"steps": "-1"}})
    assert str(from_flag.value) == "--attack-steps -1: must be above 0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[prune]\nepochs = 3", "it belongs into [recover]"),
        ("[attack]\nbatch_size = 3", "it belongs into [recover] or [latency]"),
        ("[recover]\nepoch = 3", "did you mean epochs?"),
        ("[recovery]\nepochs = 3", "did you mean recover?"),
        ("[model]\ninput_shape = [3, 8]", "model.input_shape = [3, 8]: must be 3 whole numbers"),
        ('[model]\nmean = "0.5"', "must be a list of numbers"),
        ("[model]\nmean = [0.5]\nstd = [0.0]", "every std must be above 0"),
        ("[model]\nbounds = [1, 0]", "the smallest pixel value must be below the largest"),
        ("[latency]\nthreads = 1.5", "must be a whole number"),
        ("[data]\ntrain = 3", "must be a path"),
    ],
)
def test_the_message_says_what_to_write(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        from_text(tmp_path, text)
    assert message in str(error.value)


@given(st.text(max_size=60))
def test_no_file_makes_it_crash(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        config = load_config(path, {})
    except UsageError as error:
        message = str(error)
    else:
        message = f"{path}: nothing wrong" if isinstance(config, Config) else ""
    assert str(path) in message
