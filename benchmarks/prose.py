"""A synthetic corpus for measurements: sentences of real prose in documents of very different lengths.

The sentences are those of WikiText-2 where it is there, else those of the built-in corpus. In half of them one word is
replaced by a crossing of two others, so that new words never cease to come, as in real text: tokenizers remember the
words they have met. The same arguments and source give the same file.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

from common import WIKITEXT

SENTENCES_LOG_MEAN, SENTENCES_LOG_DEVIATION = 1.0, 1.2  # of a document: half have up to 3, one in a hundred over 40
CHANGED_SENTENCES = 0.5


def write_prose(path: Path, *, megabytes: int, seed: int = 0) -> str:
    """Writes about `megabytes` (2**20 bytes) of documents, one a line, to `path`; returns what they are made of."""
    name, texts = _source()
    sentences = [found for text in texts for found in re.split(r"(?<=[.;:]) ", " ".join(text.split())) if found]
    words = sorted({word for sentence in sentences for word in sentence.split() if word.isalpha()})
    chance, left = random.Random(seed), megabytes << 20
    with path.open("w", encoding="utf-8") as file:
        while left > 0:
            count = max(1, round(chance.lognormvariate(SENTENCES_LOG_MEAN, SENTENCES_LOG_DEVIATION)))
            picked = chance.choices(sentences, k=count)
            document = " ".join(
                _changed(s, words, chance) if chance.random() < CHANGED_SENTENCES else s for s in picked
            )
            left -= file.write(document + "\n")  # characters: about as many as bytes
    return f"{len(sentences):,} sentences of {name}"


def _source() -> tuple[str, Iterator[str]]:
    """The name and the texts of the corpus that the sentences are taken from."""
    file = WIKITEXT / "train.txt"
    if file.exists():
        return "wikitext-2", (line for line in file.read_text(encoding="utf-8").splitlines() if line.strip(" ="))
    from tp2d_data.sources.stdlib import stdlib_documents

    return "the standard library's documentation", stdlib_documents()


def _changed(sentence: str, words: list[str], chance: random.Random) -> str:
    """`sentence` with one of its words replaced by the first half of a word and the second half of another."""
    parts = sentence.split(" ")
    one, other = chance.choices(words, k=2)
    parts[chance.randrange(len(parts))] = one[: (len(one) + 1) // 2] + other[len(other) // 2 :]
    return " ".join(parts)
