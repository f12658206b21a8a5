"""Masks of chats, each against what the template's author would mark by hand."""

import re

import numpy as np
import pytest
from tp2d_data import load_tokenizer
from tp2d_data.sources.records import Record
from tp2d_data.tokens.chats import chat_examples, check_template
from tp2d_data.tokens.examples import Task, check_task, tokenise

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3: the turn after the last question is written with its (empty) thinking, earlier ones without.
THINKING = (
    "{% set last = messages | map(attribute='role') | list %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and 'user' not in last[loop.index:] %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Llama 2: the system's text goes into the first question, and spaces stand around what is said.
INST = (
    "{% if messages and messages[0].role == 'system' %}{% set s = messages[0].content ~ '\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}[INST] "
    "{{ (s if loop.first else '') ~ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} <|im_end|>"
    "{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def chat(*turns):
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": names[turn[0]], "content": turn[1:]} for turn in turns]


LONG = chat("sBe brief.", "uHi  😀 there", "aHello, naïve ☃!", "u<|im_start|>assistant x", "a and\nbye ")


@pytest.fixture
def tokenizer(builtin_cache):
    tokenizer = load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def examples(tokenizer, *chats):
    records = [Record(f"a.jsonl, line {number}", (value,)) for number, value in enumerate(chats, 1)]
    return chat_examples(records, tokenizer=tokenizer, field="messages")


def trained_on(tokenizer, messages):
    """The tokens that are trained on, turn by turn, as text."""
    ((ids, trained),) = examples(tokenizer, messages)
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(trained)) + 1)
    return [tokenizer.decode([ids[number] for number in run]) for run in runs if trained[run[0]]]


def refusal(tokenizer, *chats):
    with pytest.raises(ValueError) as raised:
        examples(tokenizer, *chats)
    return str(raised.value)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["plain", "marked"])
def test_which_tokens_of_several_turns_are_trained_on(tokenizer, template):
    """The content as it is given and the token that ends the turn; no line break after that, and no other's text."""
    tokenizer.chat_template = template
    assert trained_on(tokenizer, LONG) == ["Hello, naïve ☃!<|im_end|>", " and\nbye <|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, MARKED, THINKING, INST], ids=["plain", "marked", "thinking", "inst"])
def test_tokens_are_those_of_the_template(tokenizer, template):
    """The ids are what `apply_chat_template` gives, whatever the mask."""
    tokenizer.chat_template = template
    messages = chat("sBe brief.", "uone", "atwo", "uthree", "afour")
    ((ids, _),) = examples(tokenizer, messages)
    assert ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    check_template(tokenizer)


def test_the_mask_of_a_marked_template_is_that_of_transformers(tokenizer):
    tokenizer.chat_template = MARKED
    ((_, trained),) = examples(tokenizer, LONG)
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    assert trained.astype(int).tolist() == tokenizer.apply_chat_template(LONG, **options)["assistant_masks"]


def test_a_template_that_writes_the_last_turn_otherwise(tokenizer):
    """Its text of the messages up to an earlier turn is no beginning of the whole: the content and its end are."""
    tokenizer.chat_template = THINKING
    messages = chat("uone", "atwo", "uthree", "afour")
    assert trained_on(tokenizer, messages) == ["two<|im_end|>", "<think>\n\n</think>\n\nfour<|im_end|>"]


def test_a_template_that_moves_the_system_text(tokenizer):
    tokenizer.chat_template = INST
    messages = chat("sBe brief.", "uone", "atwo", "uthree", "afour")
    assert trained_on(tokenizer, messages) == [" two <|im_end|>", " four <|im_end|>"]


def test_a_template_without_special_tokens(tokenizer):
    """The line break that ends a turn is part of it: nothing else would tell where to stop."""
    tokenizer.chat_template = PLAIN
    assert trained_on(tokenizer, chat("uone", "atwo", "uthree", "afour")) == [" two\n", " four\n"]


def test_turns_of_every_kind(tokenizer):
    assert trained_on(tokenizer, chat("afirst", "uone")) == ["first<|im_end|>"]
    assert trained_on(tokenizer, chat("uone", "a", "uthree", "a ")) == ["<|im_end|>", "<|im_end|>"]
    # White space that is one token with the generation prompt's is not trained on; a word with a space before it is.
    assert trained_on(tokenizer, chat("uone", "a\n\ntwo")) == ["\ntwo<|im_end|>"]
    assert trained_on(tokenizer, chat("uone", "ttwo", "athree", "afour")) == ["three<|im_end|>", "four<|im_end|>"]


def test_a_chat_without_a_turn_of_the_assistant_is_dropped_and_counted(tokenizer):
    records = [Record("a", (value,)) for value in (chat("uone"), [], None, chat("uone", "atwo"))]
    found = tokenise(records, tokenizer=tokenizer, task=Task(loss_on="assistant"), append_eos=True)
    assert len(found.ids) == len(found.trained) == 1 and found.dropped == {"no assistant turn": 3}
    assert found.ids[0] == examples(tokenizer, chat("uone", "atwo"))[0][0]  # the template has the only say on ends


def test_null_fields_of_a_message_are_none(tokenizer):
    """A table writes every field of every message, null where one has it not."""
    padded = [message | {"tool_calls": None, "name": None} for message in LONG]
    assert trained_on(tokenizer, padded) == trained_on(tokenizer, LONG)


def test_refuses_what_is_no_chat(tokenizer):
    good = chat("uone", "atwo")
    for value, expected in (
        ("text", "a.jsonl, line 2: field 'messages' holds a str, not a list of messages"),
        (["text"], "a.jsonl, line 2: message 1 of 'messages' is a str, not an object with role and content"),
        ([{"from": "human", "value": "x"}], "line 2: message 1 of 'messages' has no role; it has from, value"),
        ([*good, {"role": "user"}], "line 2: message 3 of 'messages' has no content; it has role"),
        ([{"role": "user", "content": None}], "message 1 of 'messages' holds a NoneType as content, not text"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            "message 1 of 'messages' holds a list as content, not text",
        ),
        ([{"role": "bot", "content": "x"}], "message 1 of 'messages' has the role 'bot'; known are system, developer,"),
        (chat("uhalf \ud83d", "atwo"), "line 2: message 1 of 'messages' is not valid Unicode (surrogates not allowed)"),
    ):
        assert expected in refusal(tokenizer, good, value)


def test_refuses_what_the_template_refuses(tokenizer):
    tokenizer.chat_template = INST
    said = refusal(tokenizer, chat("uone", "atwo"), chat("uone", "uagain", "atwo"))
    assert re.fullmatch(r"a.jsonl, line 2: the chat template of .* does not take it \(roles must alternate\)", said)


def test_refuses_a_mask_it_cannot_know(tokenizer):
    question = chat("uone", "atwo", "uthree", "afour")
    # A generation prompt that is no beginning of the turn as it is written.
    tokenizer.chat_template = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")
    assert "turn 1 of the assistant does not begin where the generation prompt of" in refusal(tokenizer, question)
    with pytest.raises(ValueError, match="a chat of one question and one answer: in the chat template of"):
        check_task(Task(loss_on="assistant"), tokenizer)
    # A count of the messages before everything: nothing is the beginning of anything.
    tokenizer.chat_template = "{{ messages | length }}" + CHATML
    assert "a.jsonl, line 1: in the chat template of" in refusal(tokenizer, question)
    # Content that is changed: the labels would not be what was given.
    tokenizer.chat_template = CHATML.replace("{{ m.content }}", "{{ m.content | upper }}")
    assert "turn 1 of the assistant does not hold the turn's content as it is given" in refusal(tokenizer, question)
    # Text after the last message only, with no token that ends a turn.
    tokenizer.chat_template = PLAIN + "{% if not add_generation_prompt %}END{% endif %}"
    assert "turn 1 of the assistant does not end where the messages up to it end" in refusal(tokenizer, question)


def test_refuses_marks_that_are_wrong(tokenizer):
    question = chat("uone", "atwo", "uthree", "afour")
    everything = "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}"
    tokenizer.chat_template = everything
    assert "is one of 2, for which the template marks 4 parts of text" in refusal(tokenizer, question)
    # As many parts as turns, and yet of the others.
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert "marks part of message 1 (user) as the assistant's, or does not write it" in refusal(tokenizer, question)
    tokenizer.chat_template = MARKED.replace("{% generation %}{{ m.content }}", "{{ m.content }}{% generation %}")
    assert "turn 1 of the assistant does not hold the turn's content" in refusal(tokenizer, question)


def test_refuses_a_token_of_two_turns(tokenizer):
    """Half of a token cannot be trained on: here the end of one turn and the beginning of the next are one word."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    said = refusal(tokenizer, chat("uReturn the num", "aber of bytes"))
    assert "the tokenizer makes one token of" in said and "a turn of the assistant and another text meet" in said


def test_refuses_tokenizers_that_cannot_tell(tokenizer, words, monkeypatch):
    with pytest.raises(ValueError, match="has no chat template, which loss_on 'assistant' needs; name one that has"):
        check_task(Task(loss_on="assistant"), load_tokenizer(words))
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="does not tell which characters a token is made of"):
        check_task(Task(loss_on="assistant"), tokenizer)


def test_a_tokenizer_that_changes_text_is_judged_by_what_it_says(words):
    """Unknown words are <unk> in a chat as alone; the mask is right all the same."""
    tokenizer = load_tokenizer(words)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} <eos> {% endfor %}"
    assert trained_on(tokenizer, chat("uw1", "aw2 unknown")) == ["<unk> w2 <unk> <eos>"]


def test_wrong_offsets_are_found(tokenizer, monkeypatch):
    """The decoded tokens are compared with the content: a tokenizer whose characters are not where it says fails."""
    from tp2d_data.tokens import chats

    right = chats._tokens
    monkeypatch.setattr(chats, "_tokens", lambda *arguments: right(*arguments) - 3)
    assert re.search(r"the tokens to train on in a turn say .*, not 'Hello, naïve ☃!'", refusal(tokenizer, LONG))


@pytest.fixture
def builtin(builtin_cache):
    return load_tokenizer("builtin:tiny", cache_dir=builtin_cache)


def test_the_builtin_template_marks_the_assistants_turns(builtin):
    """The content and the token that ends it, of every turn, and nothing else."""
    check_template(builtin)
    turns = chat(
        "sBe brief.", "uHi  😀 there", "aHello,\n naïve ☃!", "uAssistant:\nNo.", "a  User:\nbye ", "tdone", "a"
    )
    assert trained_on(builtin, turns) == [
        "Hello,\n naïve ☃!<|endoftext|>",
        "User:\nbye<|endoftext|>",
        "<|endoftext|>",
    ]
    assert builtin.apply_chat_template(turns[:3], tokenize=False) == (
        "System:\nBe brief.<|endoftext|>\n"
        "User:\nHi  😀 there<|endoftext|>\nAssistant:\nHello,\n naïve ☃!<|endoftext|>\n"
    )


def test_the_builtin_template_is_one_for_transformers_too(builtin):
    """Its mask of the assistant's tokens; a prompt's tokens are those that stand before the answer in training."""
    turns = chat("uWho goes there?", "aA friend.", "uWho?", "aI.")
    found = builtin.apply_chat_template(turns, return_assistant_tokens_mask=True, return_dict=True)
    ((ids, trained),) = examples(builtin, turns)
    assert ids == found["input_ids"] and trained.astype(int).tolist() == found["assistant_masks"]
    prompt = builtin.apply_chat_template(turns[:3], add_generation_prompt=True)["input_ids"]
    assert ids[: len(prompt)] == prompt and builtin.decode(ids[len(prompt) :]) == "I.<|endoftext|>\n"
