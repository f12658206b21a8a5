import subprocess
import sys

import numpy as np
import pytest
from tokenizers import processors
from tp2d_data import load_tokenizer
from tp2d_data.sources.records import Record
from tp2d_data.tokens.examples import Task, as_text, check_task, tokenise


@pytest.fixture
def tokenizer(words):
    return load_tokenizer(words)  # w0 is 2; <eos> is 1


@pytest.fixture
def framed(words):
    """A tokenizer that puts w900 before every text and <eos> after it."""
    tokenizer = load_tokenizer(words)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="w900 $A <eos>", special_tokens=[("<eos>", 1), ("w900", 902)]
    )
    return tokenizer


def of(*values, tokenizer, append_eos=False, **options):
    records = [
        Record(f"a.jsonl, line {number}", value if isinstance(value, tuple) else (value,))
        for number, value in enumerate(values, 1)
    ]
    return tokenise(records, tokenizer=tokenizer, task=Task(**options), append_eos=append_eos)


def test_task_reads_only_its_fields():
    assert Task().fields == ("text",)
    assert Task(loss_on="completion", prompt_field="q").fields == ("q", "completion")
    assert Task(loss_on="assistant", messages_field="chat").fields == ("chat",)
    assert Task(messages_field="chat").identity() == Task().identity() != Task(text_field="chat").identity()
    assert Task(loss_on="assistant", messages_field="text").identity() != Task().identity()


def test_task_checks_itself():
    with pytest.raises(ValueError, match="loss_on must be all, completion or assistant, not 'prompt'"):
        Task(loss_on="prompt")
    with pytest.raises(ValueError, match="completion_field is empty"):
        Task(completion_field="")
    with pytest.raises(ValueError, match="prompt_field and completion_field are both 'completion'"):
        Task(prompt_field="completion")


def test_texts(tokenizer):
    """Every document is a row or is counted: nothing is left out in silence."""
    found = of("w0 w1", "", None, " \n\t ", "w3", "w4 <eos>", "nonsense\0 w5", tokenizer=tokenizer)
    assert found.ids == [[2, 3], [6, 1], [0, 7]] and found.trained is None
    assert found.dropped == {"empty": 3, "fewer than two tokens": 1}
    assert of("w0 w1", tokenizer=tokenizer).dropped == {}
    assert of(tokenizer=tokenizer).ids == []


def test_append_eos_once(tokenizer, framed):
    """A text that ends with it, or a tokenizer that writes it, gets no second one; an empty document gets none."""
    found = of("w0 w1", "w3", "w4 <eos>", "", tokenizer=tokenizer, append_eos=True)
    assert found.ids == [[2, 3, 1], [5, 1], [6, 1]] and found.dropped == {"empty": 1}
    assert of("w0", tokenizer=framed, append_eos=True).ids == of("w0", tokenizer=framed).ids == [[902, 2, 1]]


def test_completion(tokenizer, framed):
    """The prompt as at inference: with what the tokenizer puts before it, without the end it would put after it."""
    rows = [("w0 w1", "w2"), ("", "w3"), (None, "w4 <eos>"), ("w5", " "), ("w6", None)]
    plain = of(*rows, tokenizer=tokenizer, loss_on="completion")
    assert plain.ids == [[2, 3, 4, 1], [5, 1], [6, 1]]
    assert [row.tolist() for row in plain.trained] == [[False, False, True, True], [True, True], [True, True]]
    assert plain.dropped == {"no completion": 2}
    with_frame = of(*rows, tokenizer=framed, loss_on="completion")
    assert with_frame.ids == [[902, 2, 3, 4, 1], [902, 5, 1], [902, 6, 1]]
    assert [row.sum() for row in with_frame.trained] == [2, 2, 2]
    assert all(row.dtype == np.bool_ for row in plain.trained)


def test_a_prompt_that_ends_with_eos_keeps_it(tokenizer):
    """It stands in the text: only what the tokenizer itself adds is taken off."""
    assert of(("w0 <eos>", "w1"), tokenizer=tokenizer, loss_on="completion").ids == [[2, 1, 3, 1]]


def test_without_a_token_to_learn(tokenizer):
    """The first token of a row is never predicted: a completion that is <eos> alone has no label."""
    found = of(("", "<eos>"), ("w0", "<eos>"), tokenizer=tokenizer, loss_on="completion")
    assert found.ids == [[2, 1]] and found.dropped == {"no token to learn": 1}


def test_slow_tokenizers_give_the_same(builtin_cache, monkeypatch):
    fast = load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    expected = of(("one two", " three"), tokenizer=fast, loss_on="completion")
    monkeypatch.setattr(type(fast), "is_fast", False)
    found = of(("one two", " three"), tokenizer=fast, loss_on="completion")
    assert found.ids == expected.ids and of("", tokenizer=fast).ids == []


def test_needs_an_end_of_text_token(make_word_tokenizer, tmp_path):
    without = load_tokenizer(make_word_tokenizer(tmp_path / "without", pad_token="w9"))
    check_task(Task(), without)
    assert of("w0 w1", tokenizer=without).ids == [[2, 3]]
    expected = r"tokenizer .*without has no end-of-text token, which append_eos needs; set eos_token"
    with pytest.raises(ValueError, match=expected):
        of("w0 w1", tokenizer=without, append_eos=True)
    with pytest.raises(ValueError, match=expected):
        check_task(Task(), without, append_eos=True)
    for ask in (check_task, lambda task, tokenizer: of(("a", "b"), tokenizer=tokenizer, loss_on="completion")):
        with pytest.raises(ValueError, match="no end-of-text token, which loss_on 'completion' needs"):
            ask(Task(loss_on="completion"), without)


def test_refuses_what_is_no_text(tokenizer):
    def refusal(*values, **options):
        with pytest.raises(ValueError) as raised:
            of("w0", *values, tokenizer=tokenizer, **options) if not options else of(
                *values, tokenizer=tokenizer, **options
            )
        return str(raised.value)

    assert refusal(7).startswith("a.jsonl, line 2: field 'text' holds a int, not text; choose another with text_field")
    assert refusal(b"x").startswith("a.jsonl, line 2: field 'text' holds a bytes, not text")
    assert "a chat is read with loss_on 'assistant' and messages_field" in refusal([{"role": "user"}])
    chat = [{"role": "user", "content": "w0"}]
    assert "line 1: field 'prompt' holds a list, not text" in refusal((chat, "w1"), loss_on="completion")
    assert "line 1: field 'completion' holds a dict" in refusal(("w1", {}), loss_on="completion")
    assert refusal("half \ud83d") == "a.jsonl, line 2: field 'text' is not valid Unicode (surrogates not allowed)"
    assert as_text("a", "text", "whole \U0001f600") == "whole \U0001f600"


LONG = """
import resource, sys
from tp2d_data import load_tokenizer
from tp2d_data.tokens.examples import Task, tokenise
from tp2d_data.sources.records import Record

tokenizer = load_tokenizer("builtin:tiny", cache_dir=sys.argv[1])
text = "A document of many characters, one after the other. " * 60_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = tokenise([Record("a", (text,))], tokenizer=tokenizer, task=Task(), append_eos=True)
print(len(text), len(found.ids), len(found.ids[0]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_document_of_millions_of_characters(builtin_cache):
    """It is one row, and costs memory in proportion: measured 133 bytes a character, the library's own alignments.

    Twice that is the bound; a copy per token or per character of Python's own would be far above it.
    """
    load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    command = [sys.executable, "-c", LONG, str(builtin_cache)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    characters, rows, tokens, kibibytes = map(int, result.stdout.split())
    assert characters > 3_000_000 and rows == 1 and tokens > 300_000
    unit = 1 if sys.platform == "darwin" else 1024
    assert kibibytes * unit < 266 * characters
