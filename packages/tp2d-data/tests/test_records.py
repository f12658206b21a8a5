import pytest
from tp2d_data.sources.records import Record, picker, require_fields


def test_picks_fields_in_their_order():
    row = {"a": 1, "b": 2, "c": 3}
    assert picker(("b",))(row) == (2,)
    assert picker(("c", "a"))(row) == (3, 1)
    with pytest.raises(KeyError):
        picker(("d",))(row)


def test_names_what_is_there():
    require_fields("a.jsonl", ("a",), {"a": 1})
    with pytest.raises(ValueError, match=r"a.jsonl, line 2 has no field 'b'; it has a: choose one with text_field, "):
        require_fields("a.jsonl, line 2", ("a", "b"), ["a"])
    with pytest.raises(ValueError, match="it has none"):
        require_fields("x", ("a",), [])


def test_a_record_is_its_place_and_values():
    assert Record("a.jsonl, line 2", ("text",)) == ("a.jsonl, line 2", ("text",))
