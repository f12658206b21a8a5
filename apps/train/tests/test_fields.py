"""How the value of a field is read from text and checked."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from tp2d_train.config import TrainConfig, option_fields
from tp2d_train.fields import allowed_types, checked, derived, item_type, option, parse_value, text_of


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A field of every type there is."""

    text: str = option("a", "text", choices=("a", "b"))
    one_of: Literal["a", "b"] = option("a", "text")
    maybe: str | None = option(None, "text that may be left out")
    count: int = option(1, "a number", least=1, most=9)
    follows: int = derived("a number that follows from others")
    rate: float = option(0.5, "a number", above=0)
    maybe_rate: float | None = option(None, "a number that may be off")
    switch: bool = option(False, "a switch")
    maybe_switch: bool | None = option(None, "a switch of three places")
    names: tuple[str, ...] = option(("a",), "several names")
    shares: tuple[float, ...] | None = option(None, "several numbers, or none")
    table: dict | None = option(None, "names and values")


FIELDS = {field.name: field for field in fields(Sample)}


def test_a_configuration_in_text_is_the_typed_one() -> None:
    """A launcher may pass every setting as text."""
    text = TrainConfig(
        tp_size="2",
        learning_rate="1e-4",
        compile="true",
        append_eos="False",
        max_grad_norm="none",
        dataset_name="a, b",
        dataset_weights="0.7,0.3",
        debug_steps="3",
        name="7",
        runtime_env='{"pip": ["x"]}',
        batch_size_per_gpu="4",
    )
    assert text == TrainConfig(
        tp_size=2,
        learning_rate=1e-4,
        compile=True,
        append_eos=False,
        max_grad_norm=None,
        dataset_name=("a", "b"),
        dataset_weights=(0.7, 0.3),
        debug_steps=3,
        name="7",
        runtime_env={"pip": ["x"]},
        batch_size_per_gpu=4,
    )


def test_every_option_is_read_from_its_own_text() -> None:
    config = TrainConfig(
        name="a",
        dataset_name=["a", "b"],
        dataset_weights=[1, 2],
        runtime_env={"a": [1]},
        compile=True,
        append_eos=False,
    )
    for field in option_fields():
        value = getattr(config, field.name)
        assert parse_value(field, text_of(value)) == value
    texts = {name: text_of(value) for name, value in config.as_dict().items() if value is not None}
    assert TrainConfig(**texts) == config


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("text", "none", "none"),
        ("one_of", "b", "b"),
        ("maybe", "None", None),
        ("maybe", "7", "7"),
        ("count", "7", 7),
        ("follows", "none", None),
        ("rate", "1", 1.0),
        ("rate", "1e-3", 1e-3),
        ("maybe_rate", "none", None),
        ("switch", "True", True),
        ("switch", "false", False),
        ("maybe_switch", "none", None),
        ("names", "a", ("a",)),
        ("names", "a, b", ("a", "b")),
        ("shares", "1,2.5", (1.0, 2.5)),
        ("shares", "none", None),
        ("table", '{"a": 1}', {"a": 1}),
    ],
)
def test_text_is_read_by_the_type_of_its_field(name: str, text: str, value: Any) -> None:
    found = parse_value(FIELDS[name], text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("count", "two", "count must be a whole number, not 'two'"),
        ("count", "2.0", "count must be a whole number, not '2.0'"),
        ("count", "none", "count must be a whole number, not 'none'"),
        ("rate", "fast", "rate must be a number, not 'fast'"),
        ("switch", "maybe", "switch must be true or false, not 'maybe'"),
        ("shares", "1,x", "shares must be numbers such as 0.7,0.3, not '1,x'"),
        ("table", "{pip", "table must be a JSON object, not '{pip'"),
    ],
)
def test_text_that_is_no_value_is_refused_by_name(name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        checked(FIELDS[name], text)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("text", "c", "unknown text 'c': choose a, b"),
        ("one_of", "c", "unknown one_of 'c': choose a, b"),
        ("maybe", "", "maybe is empty: leave it out"),
        ("names", [], "names is empty: leave it out"),
        ("names", [1], "names must be str, not 1"),
        ("shares", ["x"], "shares must be float, not 'x'"),
        ("shares", 1, "shares must be tuple or none, not 1"),
        ("count", 0, "count must be at least 1 and at most 9, not 0"),
        ("count", 10, "count must be at least 1 and at most 9, not 10"),
        ("count", "10", "count must be at least 1 and at most 9, not 10"),
        ("count", True, "count must be int, not True"),
        ("count", 2.0, "count must be int, not 2.0"),
        ("count", None, "count must be int, not None"),
        ("rate", 0, "rate must be above 0, not 0"),
        ("rate", float("nan"), "rate must be above 0, not nan"),
        ("maybe_rate", "inf", "maybe_rate must be finite, not inf"),
        ("switch", 1, "switch must be bool, not 1"),
        ("switch", "1", "switch must be bool, not 1"),
        ("table", "[1]", r"table must be dict or none, not \[1\]"),
    ],
)
def test_a_value_of_another_kind_or_out_of_bounds_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(FIELDS[name], value)


def test_a_whole_number_is_a_number_and_a_path_is_text() -> None:
    assert type(checked(FIELDS["rate"], 1)) is float
    assert checked(FIELDS["shares"], [1, 2]) == (1.0, 2.0)
    assert checked(FIELDS["maybe"], Path("/a")) == "/a"
    assert checked(FIELDS["names"], (Path("/a"), "b")) == ("/a", "b")
    assert checked(FIELDS["names"], Path("/a")) == ("/a",)


def test_a_comma_in_the_path_of_one_that_exists_separates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b.txt").touch()
    assert parse_value(FIELDS["names"], "a,b.txt") == ("a,b.txt",)
    assert parse_value(FIELDS["names"], "a,c.txt") == ("a", "c.txt")


def test_types_are_those_of_the_declaration() -> None:
    none = type(None)
    assert allowed_types(FIELDS["count"]) == (int,)
    assert allowed_types(FIELDS["follows"]) == (int, none)
    assert allowed_types(FIELDS["shares"]) == (tuple, none)
    assert [item_type(FIELDS[name]) for name in ("names", "shares", "count", "table")] == [str, float, None, None]
