from tp2d_data.holdout import is_held_out


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
