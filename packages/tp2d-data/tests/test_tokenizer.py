import json

import pytest
from tp2d_data import load_tokenizer
from tp2d_data.tokens.tokenizer import BUILTIN_VOCABULARY, END_OF_TEXT, _train, encode, highest_id, tokenizer_identity

TEXTS = ["Return the number of bytes.", "", " indented\n\ntwice: naïve ☃ <|endoftext|>"]


def test_builtin_round_trip(builtin_cache):
    tokenizer = load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    assert len(tokenizer) == BUILTIN_VOCABULARY == highest_id(tokenizer) + 1
    assert tokenizer.pad_token == tokenizer.eos_token == END_OF_TEXT
    assert [tokenizer.decode(ids) for ids in encode(tokenizer, TEXTS)] == TEXTS
    assert encode(tokenizer, TEXTS)[2][-1] == tokenizer.eos_token_id
    assert len(encode(tokenizer, ["Return the number of bytes."])[0]) < 10


def test_builtin_survives_save_pretrained(builtin_cache, tmp_path):
    """A run's export holds this tokenizer; loaded from there it must give the same ids."""
    tokenizer = load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert encode(loaded, TEXTS) == encode(tokenizer, TEXTS)
    assert loaded.pad_token_id == tokenizer.pad_token_id


def test_training_is_deterministic(tmp_path):
    """Ranks of several machines each train their own: a hash order that shows would give them different ids."""
    texts = [f"word{i % 97} and word{i % 89}, word{i % 7} or word{i % 83}!" for i in range(500)]
    for name in ("a", "b", "c"):
        _train(iter(texts), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_encode_equals_transformers(builtin_cache, words):
    """The direct way to the library below gives what the tokenizer's own call gives, whatever was called before."""
    for tokenizer in (load_tokenizer("builtin:tiny", cache_dir=builtin_cache), load_tokenizer(words)):
        expected = tokenizer(TEXTS)["input_ids"]
        tokenizer(TEXTS, truncation=True, max_length=2, padding="max_length")
        assert encode(tokenizer, TEXTS) == expected


def test_encode_adds_special_tokens_as_the_tokenizer_does(words, tmp_path):
    from tokenizers import processors

    tokenizer = load_tokenizer(words)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    assert encode(tokenizer, ["w0 w1"]) == [[1, 2, 3]]
    assert tokenizer_identity(tokenizer) != tokenizer_identity(load_tokenizer(words))


def test_identity_does_not_depend_on_earlier_calls(words):
    first, second = load_tokenizer(words), load_tokenizer(words)
    second(TEXTS, truncation=True, max_length=2, padding="max_length")
    assert tokenizer_identity(first) == tokenizer_identity(second)


def test_padding_token(words, make_word_tokenizer, tmp_path):
    assert load_tokenizer(words).pad_token == "<eos>"
    own = make_word_tokenizer(tmp_path / "own", eos_token="<eos>", pad_token="w9")
    assert load_tokenizer(own).pad_token == "w9"
    neither = make_word_tokenizer(tmp_path / "neither")
    with pytest.raises(ValueError, match="neither has neither a padding nor an end-of-text token; set pad_token"):
        load_tokenizer(neither)


def test_refuses_what_is_no_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"the folder .* has no tokenizer .* name one with tokenizer_name"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ValueError, match="no such folder; give a folder, a hub name, or builtin:tiny"):
        load_tokenizer(str(tmp_path / "none"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer .* cannot be loaded"):
        load_tokenizer(str(tmp_path))


def test_does_not_run_code_that_is_not_trusted(make_word_tokenizer, tmp_path):
    folder = make_word_tokenizer(tmp_path / "custom", eos_token="<eos>")
    (tmp_path / "custom" / "code.py").write_text("raise SystemExit('ran')")
    path = tmp_path / "custom" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}, "tokenizer_class": "Tokenizer"}
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_tokenizer(folder)


def test_encode_without_special_tokens(words):
    from tokenizers import processors

    tokenizer = load_tokenizer(words)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    assert encode(tokenizer, ["w0 w1"], add_special_tokens=False) == [[2, 3]]
    assert encode(tokenizer, []) == []


def test_identity_holds_what_a_record_is_made_with(words):
    """The chat template and the end-of-text token are no part of the vocabulary, and decide on tokens all the same."""
    identities = set()
    for change in ({}, {"chat_template": "a"}, {"chat_template": "b"}, {"eos_token": "w1"}):
        tokenizer = load_tokenizer(words)
        for name, value in change.items():
            setattr(tokenizer, name, value)
        identities.add(tokenizer_identity(tokenizer))
    assert len(identities) == 4


def test_the_builtin_chat_template_leaves_tokens_of_texts_as_they_were(builtin_cache):
    """It came after the first runs: their cached tokens, and positions in them, are known by this hash."""
    tokenizer = load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    with_template = {chats: tokenizer_identity(tokenizer, with_chats=chats) for chats in (True, False)}
    assert len(tokenizer) == BUILTIN_VOCABULARY and tokenizer.chat_template
    tokenizer.chat_template = None
    assert tokenizer_identity(tokenizer) == with_template[False] != with_template[True]
    tokenizer.chat_template = "another"
    assert tokenizer_identity(tokenizer, with_chats=False) != with_template[False]


def test_the_builtin_chat_template_survives_save_pretrained(builtin_cache, tmp_path):
    tokenizer = load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).chat_template == tokenizer.chat_template
