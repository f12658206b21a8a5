from tp2d_data.sources.holdout import is_held_out, text_of


def test_share_is_decided_by_content():
    texts = [f"document {i}" for i in range(4000)]
    held_out = [text for text in texts if is_held_out(text, 0.05)]
    assert 140 < len(held_out) < 260
    assert [text for text in reversed(texts) if is_held_out(text, 0.05)] == held_out[::-1]
    assert all(is_held_out(text, 0.1) for text in held_out)  # a larger share holds the smaller one


def test_nothing_and_nearly_everything():
    texts = [f"document {i}" for i in range(100)]
    assert not any(is_held_out(text, 0.0) for text in texts)
    assert all(is_held_out(text, 1.0) for text in texts)


def test_content_of_a_record():
    """A text is itself, so that its side stays what it was; anything else its JSON, whatever the order of keys."""
    assert text_of(("a text",)) == "a text" and text_of((None,)) == ""
    assert text_of(("a", "b")) != text_of(("b", "a"))
    assert text_of(([{"role": "user", "content": "x"}],)) == text_of(([{"content": "x", "role": "user"}],))
    assert text_of((object,)) and text_of((7,)) == "[7]"
