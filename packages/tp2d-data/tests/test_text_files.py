import json
import tracemalloc

import pytest
from tp2d_data.sources.text_files import _PIECE, json_count, json_fields, json_records, txt_records


def refusal(path, field="text"):
    with pytest.raises(ValueError) as raised:
        list(json_records(path, (field,), 0))
    return str(raised.value).replace(str(path), path.name)


def values(path):
    return [record.values[0] for record in json_records(path, ("text",), 0)]


@pytest.mark.parametrize("around", ["{}", "\ufeff{}", "\n\n  {} \n", '{},{{"text": "end"}}'])
def test_a_list_is_read_piece_by_piece(tmp_path, around):
    """Elements of every length, cut by the pieces anywhere: in names, escapes, literals, between elements."""
    rows = [{"text": "é\\\u2028\t" * (i % 7) + "x" * (i * 37 % 4999), "n": [True, None, -1.5e-7]} for i in range(1500)]
    begin, end = around.split("{}", 1) if "," not in around else ("", "")
    text = json.dumps(rows, indent=1 if "\n" in around else None, ensure_ascii="," in around)
    assert len(text) > 3 * _PIECE
    (tmp_path / "a.json").write_text(begin + text + end, encoding="utf-8")
    assert values(tmp_path / "a.json") == [row["text"] for row in rows]
    assert json_count(tmp_path / "a.json") == 1500
    assert json_fields(tmp_path / "a.json") == ["text", "n"]


def test_a_long_element_of_a_list(tmp_path):
    """Longer than many pieces: it is parsed a few times, not once per piece."""
    long = "word " * 3_000_000
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": long}, {"text": "two"}]))
    assert values(tmp_path / "a.json") == ["one", long, "two"]


def test_memory_does_not_grow_with_a_list(tmp_path):
    """20 MB of rows; a piece of 1 MB, its bytes, its rest and its rows are a few MB at a time."""
    (tmp_path / "a.json").write_text(json.dumps([{"text": "x" * 1000}] * 20_000))
    tracemalloc.start()
    assert sum(1 for _ in json_records(tmp_path / "a.json", ("text",), 0)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_mistakes_in_a_list_are_named_by_line(tmp_path):
    rows = ",\n".join(json.dumps({"text": "x" * 1000}) for _ in range(2000))

    def said(text):
        (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return refusal(tmp_path / "a.json")

    assert said(f"[{rows}").startswith("a.json, line 2000: not JSON (expected ] or a comma")
    assert said(f'[{rows},\n{{"text": "cut').startswith("a.json, line 2001: not JSON (Unterminated string")
    assert said(f'[{rows},\n{{"text" 7}}]').startswith("a.json, line 2001: not JSON (Expecting ':' delimiter")
    assert said(f"[{rows},\n]") == "a.json, line 2001: not JSON (Expecting value)"
    assert said(f"[{rows}]\n[]") == "a.json, line 2001: not JSON (more after the end of the list)"
    assert said(f"[{rows},\n7]") == "a.json, row 2001: expected an object, found a int"
    assert said(b"[" + rows.encode() + b',\n{"text": "\xff"}]').startswith("a.json, line 2001: not UTF-8 (")
    assert said("[" + '{"text":' * 100_000).startswith("a.json, line 1: not JSON (nested too deeply")
    assert said('[{"text": 1}, {"body": 2}]').startswith("a.json, row 2 has no field 'text'; it has body")


def test_mistakes_early_in_a_long_list_do_not_read_it_whole(tmp_path):
    (tmp_path / "a.json").write_text('[{"text" 7},' + json.dumps([{"text": "x" * 1000}] * 30_000)[1:])
    tracemalloc.start()
    assert refusal(tmp_path / "a.json").startswith("a.json, line 1: not JSON")
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def test_an_empty_list(tmp_path):
    (tmp_path / "a.json").write_text(" [ \n ] \n")
    assert values(tmp_path / "a.json") == [] and json_fields(tmp_path / "a.json") is None


def test_mistakes_in_lines_are_named(tmp_path):
    def said(content):
        (tmp_path / "a.jsonl").write_bytes(content)
        return refusal(tmp_path / "a.jsonl")

    assert said(b'{"text": "a"}\n\n{"text": \n').startswith("a.jsonl, line 3: not JSON (Expecting value at character ")
    assert said(b'{"text": "a"}\n{"text": "\xe9"}\n').startswith("a.jsonl, line 2: not UTF-8 (")
    assert said('{"text": "a"}\n'.encode("utf-16")).startswith("a.jsonl, line 1: not UTF-8 (")
    assert said(b"7\n") == "a.jsonl, line 1: expected an object, found a int"
    assert said(b'{"text":' * 100_000).startswith("a.jsonl, line 1: not JSON this can read (nested too deeply)")
    assert said(b'{"text": "a"}\n{"body": "b"}\n').startswith("a.jsonl, line 2 has no field 'text'; it has body")
    assert said(b'{"text": "a"} {"text": "b"}\n').startswith("a.jsonl, line 1: not JSON (Extra data")
    assert said(b'{"text": ' + b"1" * 5000 + b"}\n").startswith(
        "a.jsonl, line 1: not JSON this can read (Exceeds the limit"
    )


def test_a_mark_of_utf8_and_nul_characters_in_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\u0000b"}\r\n\xc2\xa0'.replace(b"\xc2\xa0", b" "))
    assert values(tmp_path / "a.jsonl") == ["a\0b"]
    (tmp_path / "a.txt").write_bytes(b"a\0b\n")
    assert [record.values for record in txt_records(tmp_path / "a.txt", ("text",), 0)] == [("a\0b",)]


def test_skipped_lines_are_not_parsed(tmp_path):
    (tmp_path / "a.jsonl").write_text('not json\n\n{"text": "b"}\n')
    (record,) = json_records(tmp_path / "a.jsonl", ("text",), 1)
    assert record == (f"{tmp_path}/a.jsonl, line 3", ("b",))
