"""Configurations to YAML and back, and every fault in one line."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from etude.core.config import (
    LoopConfig,
    StudyConfig,
    differences,
    from_dict,
    override,
    read_yaml,
    run_name,
    to_dict,
    to_yaml,
)
from etude.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Part:
    rate: float = 1e-5
    name: str = "café"
    ways: tuple[int, ...] = (5, 20)
    split: Literal["train", "val"] = "train"
    limit: float | None = None

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"part.rate must be 0 or more, not {self.rate}")


@dataclass(frozen=True, kw_only=True)
class Config(StudyConfig):
    part: Part = field(default_factory=Part)
    on: bool = False


def make(**changes: Any) -> Config:
    return Config(loop=LoopConfig(max_steps=10), **changes)


def through_yaml(config: Config) -> Config:
    return from_dict(Config, yaml.safe_load(to_yaml(to_dict(config))))


def test_a_round_trip_is_exact():
    config = make(part=Part(rate=3e-7, ways=(1,), limit=2.0), on=True, seed=5)
    assert through_yaml(config) == config
    assert isinstance(through_yaml(config).part.ways, tuple)
    assert type(through_yaml(config).loop) is LoopConfig


@given(
    st.floats(0, 1e30),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.lists(st.integers(), max_size=4),
    st.booleans(),
    st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
)
@example(0.0, "\x85", [], False, None)
def test_any_values_survive_yaml(rate: float, name: str, ways: list[int], on: bool, limit: float | None):
    config = make(part=Part(rate=rate, name=name, ways=tuple(ways), limit=limit), on=on)
    assert through_yaml(config) == config


def test_the_fields_keep_their_order():
    assert list(yaml.safe_load(to_yaml(to_dict(make())))) == ["loop", "seed", "init", "part", "on"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sed": 1}, r"no setting 'sed'; did you mean 'seed'\?"),
        ({"part": {"raet": 1.0}}, r"no setting 'part\.raet'; did you mean 'rate'\?"),
        ({"loop": {"max_steps": 3, "max_step": 3}}, r"no setting 'loop\.max_step'; did you mean 'max_steps'\?"),
        ({"loop": {}}, r"loop\.max_steps must be at least 1 where loop\.epochs is 0"),
        ({"loop": {"max_steps": "many"}}, r"loop\.max_steps: Input should be a valid integer"),
        ({"loop": {"max_steps": 0}}, r"loop\.max_steps must be at least 1"),
        ({"loop": {"max_steps": 3, "keep": 0}}, r"loop\.keep must be at least 1, not 0"),
        ({"loop": {"max_steps": 3, "save_minutes": -1}}, r"loop\.save_minutes must be 0 or more, not -1"),
        ({"loop": {"max_steps": 3, "device": "tpu"}}, r"loop\.device: Input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ({"loop": {"max_steps": 3, "trackers": ["x"]}}, r"loop\.trackers\.0: Input should be 'tensorboard'"),
        ({"loop": 3}, "loop: "),
        ({"part": {"rate": -1.0}}, r"part\.rate must be 0 or more, not -1"),
        ({"part": {"ways": [5, "x"]}}, r"part\.ways\.1: Input should be a valid integer"),
        ({"part": {"split": "test"}}, r"part\.split: Input should be 'train' or 'val'"),
        ({"on": "perhaps"}, "on: Input should be a valid boolean"),
        ({"seed": None}, "seed: Input should be a valid integer"),
    ],
)
def test_a_fault_is_one_line_that_names_its_place(changes: dict[str, Any], said: str):
    values = {"loop": {"max_steps": 10}} | changes
    with pytest.raises(UserError, match=said) as caught:
        from_dict(Config, values, origin="runs/x/config.yaml")
    assert str(caught.value).startswith("runs/x/config.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [None, 3, "text", [], [1], {1: 2}, {"loop": []}, {None: None}])
def test_foreign_values_are_one_line(values: Any):
    with pytest.raises(UserError) as caught:
        from_dict(Config, values)
    assert "\n" not in str(caught.value)


def test_override():
    config = make()
    changed = override(config, {"loop.max_steps": 20, "part.ways": [3], "on": True})
    assert changed == dataclasses.replace(
        config, loop=LoopConfig(max_steps=20), part=Part(ways=(3,)), on=True
    )  # fmt: skip
    assert config == make()


@pytest.mark.parametrize(
    ("dotted", "said"),
    [
        ("loop.max_stepz", r"no setting 'loop\.max_stepz'; did you mean 'max_steps'\?"),
        ("lop.max_steps", r"no setting 'lop\.max_steps'; did you mean 'loop'\?"),
        ("seed.x", r"no setting 'seed\.x'"),
        ("nothing", "no setting 'nothing'"),
        ("", "no setting ''"),
    ],
)
def test_override_of_what_is_not_there(dotted: str, said: str):
    with pytest.raises(UserError, match=said):
        override(make(), {dotted: 1})


def test_override_with_a_wrong_value():
    with pytest.raises(UserError, match=r"part\.rate must be 0 or more"):
        override(make(), {"part.rate": -2.0})


def test_differences_are_dotted_and_undo_themselves():
    before, after = make(), make(part=Part(ways=(1, 2), limit=0.5), on=True)
    assert differences(before, after) == {"part.ways": [1, 2], "part.limit": 0.5, "on": True}
    assert override(before, differences(before, after)) == after
    assert differences(before, before) == {}


def test_a_setting_put_to_none_is_a_difference():
    assert differences(make(part=Part(limit=1.0)), make()) == {"part.limit": None}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"- a\n- b\n", "does not hold a YAML mapping"),
        (b"", "does not hold a YAML mapping"),
        (b"a: [1, 2\n", "cannot be read as YAML"),
        (b"a: !!python/object/apply:os.getcwd []\n", "cannot be read as YAML"),
        (b"\xff\xfe\xfa", "cannot be read as YAML"),
        (None, "is missing"),
    ],
)
def test_broken_yaml_is_one_line(tmp_path: Path, content: bytes | None, said: str):
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_length_in_epochs_is_of_the_data_that_is_read() -> None:
    """A fifth of the training pictures that becomes the test makes each epoch as much shorter."""
    course = LoopConfig(epochs=50.0)
    assert [course.steps(count // 32) for count in (30_000, 24_000)] == [46_850, 37_500]
    assert LoopConfig(max_steps=100).steps(0) == 100
    assert LoopConfig(max_steps=100, epochs=2.0).steps(30) == 60
    with pytest.raises(ValueError, match=r"loop.max_steps"):
        LoopConfig()


def test_a_new_length_takes_the_place_of_the_old_one() -> None:
    by_epochs = StudyConfig(loop=LoopConfig(epochs=50.0))
    shorter = override(by_epochs, {"loop.max_steps": 10})
    assert (shorter.loop.max_steps, shorter.loop.epochs) == (10, 0)
    assert override(shorter, {"loop.epochs": 3}) == StudyConfig(loop=LoopConfig(epochs=3.0))
    assert run_name(["course"], differences(by_epochs, shorter)) == "course-loop.max_steps-10"
