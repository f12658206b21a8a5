"""Chats: a list of messages in the tokenizer's chat template, and which of its tokens belong to the assistant.

Of a turn, the tokens that would be generated after the template's generation prompt are trained on: the content and
the token that ends the turn, without white space that the template writes after that token. Where a template marks
this itself (`{% generation %}`), its marks are used. Otherwise the chat is rendered twice, up to the turn with a
generation prompt and including the turn, and the turn is the text in which the two differ. Each turn's mask is checked:
the decoded tokens contain the turn's content, and nothing of other turns. A chat whose mask does not pass is a
ValueError with the record's place.

Cost: a chat of n turns of the assistant is rendered about 2 n times.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tp2d_data.sources.records import Record
from tp2d_data.tokens.tokenizer import encode, plain_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "developer", "user", "assistant", "tool")
Message = dict[str, Any]
Example = tuple[list[int], NDArray[np.bool_]]  # token ids, and which of them are trained on
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A chat as its template writes it, and where in that text each turn of the assistant begins and ends."""

    where: str
    text: str
    spans: list[tuple[int, int]]  # characters
    contents: list[str]  # of the assistant's turns


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raises ValueError where the template and tokenizer cannot give a loss mask that is known to be right."""
    template = Template(tokenizer)
    question, answer = {"role": "user", "content": "Who goes there?"}, {"role": "assistant", "content": "A friend."}
    _examples([template.chat("a chat of one question and one answer", [question, answer])], tokenizer)


def chat_examples(
    records: Sequence[Record], *, tokenizer: "PreTrainedTokenizerBase", field: str
) -> list[Example | None]:
    """Tokens of each chat and which of them are trained on; None for a chat without a turn of the assistant.

    Raises:
        ValueError: no list of messages, a chat the template does not take, or a loss mask that is not right; with the
            record's place.
    """
    template = Template(tokenizer)
    messages = [checked_messages(where, field, value) for where, (value,) in records]
    spoken = [any(message["role"] == "assistant" for message in chat) for chat in messages]
    chosen = zip(records, messages, spoken, strict=True)
    chats = [template.chat(record.where, chat) for record, chat, has_turn in chosen if has_turn]
    examples = iter(_examples(chats, tokenizer))
    return [next(examples) if has_turn else None for has_turn in spoken]


def checked_messages(where: str, field: str, value: Any) -> list[Message]:
    """The messages of a chat (null is none), without fields that are null."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"{where}: field '{field}' holds a {type(value).__name__}, not a list of messages")
    return [_message(f"{where}: message {number} of '{field}'", message) for number, message in enumerate(value, 1)]


def _message(where: str, message: Any) -> Message:
    if not isinstance(message, dict):
        raise ValueError(f"{where} is a {type(message).__name__}, not an object with role and content")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            has = f"holds a {type(message[key]).__name__} as {key}, not text" if key in message else f"has no {key}"
            raise ValueError(f"{where} {has}; it has {', '.join(map(str, message)) or 'nothing'}")
    if message["role"] not in ROLES:
        raise ValueError(f"{where} has the role '{message['role']}'; known are {', '.join(ROLES)}")
    try:
        message["content"].encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is not valid Unicode ({error.reason})") from error
    return {key: value for key, value in message.items() if value is not None}


class Template:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        if not tokenizer.chat_template:
            raise ValueError(
                f"tokenizer {self.name} has no chat template, which loss_on 'assistant' needs; "
                "name one that has with tokenizer_name, or put a chat_template.jinja beside its files"
            )
        if not tokenizer.is_fast:
            raise ValueError(
                f"tokenizer {self.name} ({type(tokenizer).__name__}) does not tell which characters a token is made "
                "of, which loss_on 'assistant' needs; name a fast one (a tokenizer.json) with tokenizer_name"
            )
        self._source = tokenizer.get_chat_template()
        self._special = tokenizer.special_tokens_map
        controls = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        found = {*controls, *tokenizer.all_special_tokens}
        self._controls = tuple(sorted(found, key=len, reverse=True))  # longest first

    def chat(self, where: str, messages: list[Message]) -> Chat:
        """`messages` as text, with the place of each turn of the assistant; there is at least one."""
        contents = [message["content"].strip() for message in messages if message["role"] == "assistant"]
        if _MARKED.search(self._source):
            text, spans = self._render(where, messages, marked=True)
            self._require_turns(where, messages, text, spans)
        else:
            text, _ = self._render(where, messages)
            turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
            spans = [self._turn(where, messages, text, number) for number in turns]
        for number, ((begin, end), content) in enumerate(zip(spans, contents, strict=True), 1):
            if content not in text[begin:end]:
                raise self._wrong(where, number, "does not hold the turn's content as it is given")
        return Chat(where=where, text=text, spans=spans, contents=contents)

    def _turn(self, where: str, messages: list[Message], text: str, number: int) -> tuple[int, int]:
        """Where message `number` stands, by the texts of the messages before it and up to it."""
        turn = sum(message["role"] == "assistant" for message in messages[: number + 1])
        before, _ = self._render(where, messages[:number], prompt=True)
        if not text.startswith(before):
            raise self._wrong(where, turn, "does not begin where the generation prompt of the messages before it ends")
        begin = len(before)
        upto = text if number == len(messages) - 1 else self._render(where, messages[: number + 1])[0]
        if text.startswith(upto) and len(upto) >= begin:
            turn_text = upto[begin:].rstrip()
            return begin, begin + len(turn_text) if turn_text.endswith(self._controls) else len(upto)
        # Some templates write the last turn differently, for example with its thinking: look for the content itself.
        end = begin + len(messages[number]["content"].strip())
        if text[begin:end] == messages[number]["content"].strip():
            for control in self._controls:
                if text.startswith(control, end):
                    return begin, end + len(control)
        raise self._wrong(where, turn, "does not end where the messages up to it end")

    def _require_turns(self, where: str, messages: list[Message], text: str, spans: list[tuple[int, int]]) -> None:
        """Checks that the template marks one part of the text per turn, and no other message's content in it."""
        turns = sum(message["role"] == "assistant" for message in messages)
        ordered = all(a <= b for a, b in zip(chain([0], *spans), chain(*spans, [len(text)]), strict=False))
        if len(spans) != turns or not ordered:
            raise self._wrong(where, 1, f"is one of {turns}, for which the template marks {len(spans)} parts of text")
        bounds = [0, *chain.from_iterable(spans), len(text)]
        others = [text[begin:end] for begin, end in zip(bounds[::2], bounds[1::2], strict=True)]
        for number, message in enumerate(messages, 1):
            content = message["content"].strip()
            if message["role"] != "assistant" and not any(content in other for other in others):
                raise ValueError(
                    f"{where}: the chat template of {self.name} marks part of message {number} ({message['role']}) "
                    "as the assistant's, or does not write it; mend the template"
                )

    def _wrong(self, where: str, turn: int, what: str) -> ValueError:
        return ValueError(
            f"{where}: in the chat template of {self.name}, turn {turn} of the assistant {what}, so the "
            "tokens to train on are not known; mark them with {% generation %} in the template, or leave the chat out"
        )

    def _render(
        self, where: str, messages: list[Message], *, prompt: bool = False, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template  # its annotation says that it returns the text alone
        try:
            texts, spans = render(
                conversations=[messages],
                chat_template=self._source,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=prompt,
                **self._special,
            )
        except Exception as error:  # a template is a program and may raise anything
            reason = " ".join(str(error).split())
            raise ValueError(f"{where}: the chat template of {self.name} does not take it ({reason})") from error
        return texts[0], [(int(begin), int(end)) for begin, end in spans[0]] if marked else []


def _examples(chats: list[Chat], tokenizer: "PreTrainedTokenizerBase") -> list[Example]:
    backend = plain_backend(tokenizer)
    # Without special tokens: the template has written them.
    encodings = backend.encode_batch([chat.text for chat in chats], add_special_tokens=False)
    examples, trained_ids = [], []
    for chat, encoding in zip(chats, encodings, strict=True):
        ids = encoding.ids
        offsets = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(ids)).reshape(-1, 2)
        turns = [_tokens(chat, span, offsets) for span in chat.spans]
        trained = np.zeros(len(ids), bool)
        for turn in turns:
            trained[turn] = True
            trained_ids.append([ids[number] for number in turn])
        examples.append((ids, trained))
    _require_contents(chats, backend.decode_batch(trained_ids, skip_special_tokens=False), tokenizer)
    return examples


def _tokens(chat: Chat, span: tuple[int, int], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of the tokens in `span`. A token may reach beyond the span with white space only.

    A token that begins before the span and shares only white space with it belongs to the generation prompt.
    """
    begin, end = span
    begins, ends = offsets.T
    # A token whose characters were all trimmed as white space has an empty place, at their end.
    inside = np.where(begins < ends, (begins < end) & (ends > begin), (begin < begins) & (begins <= end))
    for number in np.flatnonzero(inside & ((begins < begin) | (ends > end))):
        first, last = int(begins[number]), int(ends[number])
        if (chat.text[first:begin] + chat.text[end : max(end, last)]).strip():
            raise ValueError(
                f"{chat.where}: the tokenizer makes one token of {chat.text[first:last]!r}, where a turn of the "
                "assistant and another text meet; end turns with a special token in the chat template"
            )
        inside[number] = first >= begin or bool(chat.text[begin:last].strip())
    return np.flatnonzero(inside)


def _require_contents(chats: list[Chat], decoded: list[str], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Checks that every turn's tokens decode to its content but for white space, as far as the tokenizer keeps text."""
    turns: Iterator[tuple[Chat, str]] = ((chat, content) for chat in chats for content in chat.contents)
    for (chat, content), found in zip(turns, decoded, strict=True):
        if _bare(content) in _bare(found):
            continue
        said = plain_backend(tokenizer).decode(encode(tokenizer, [content], add_special_tokens=False)[0], False)
        if _bare(said) not in _bare(found):
            raise ValueError(
                f"{chat.where}: with the chat template of {tokenizer.name_or_path or type(tokenizer).__name__}, the "
                f"tokens to train on in a turn say {found[:60]!r}, not {content[:60]!r}; this tokenizer cannot be used "
                "with loss_on 'assistant'"
            )


def _bare(text: str) -> str:
    return "".join(text.split())
