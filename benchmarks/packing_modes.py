"""What each way of packing costs and loses, on real text.

    python benchmarks/packing_modes.py                          # a few seconds
    python benchmarks/packing_modes.py --dataset builtin:stdlib --output /tmp/packing_modes.md

The text is WikiText-2 (a line a document), with a byte-level BPE of 4,096 tokens trained on it, or with
`--dataset builtin:stdlib` the built-in corpus with the built-in tokenizer.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import RESULTS, WIKITEXT, table, write_result
from tp2d_data import BUILTIN_VOCABULARY, Corpus, Packing, Task, load_tokenizer
from tp2d_data.rows.rows import open_rows, statistics
from tp2d_data.sources.corpus import open_corpus
from tp2d_data.tokens.cache import Tokeniser, Tokens

HEAD = "seq_length | packing | rows | rows / best_fit | useful | lost | cut documents"


def main() -> None:
    """Tokenises once, packs in every way, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=str(WIKITEXT))
    parser.add_argument("--output", type=Path, default=RESULTS / "packing_modes.md")
    options = parser.parse_args()
    builtin = options.dataset.startswith("builtin:")
    with tempfile.TemporaryDirectory() as name:
        folder, task = Path(name), Task()
        corpus = open_corpus(Corpus(dataset_name=options.dataset, dataset_percentage=100), fields=task.fields)
        tokenizer = load_tokenizer("builtin:tiny")
        if not builtin:
            texts = (record.values[0] for record in corpus)
            tokenizer = tokenizer.train_new_from_iterator(texts, BUILTIN_VOCABULARY, show_progress=False)
        tokens = Tokeniser(documents=corpus, task=task, tokenizer=tokenizer, append_eos=False, cache_dir=folder).all()
        rows = [row for seq_length in (256, 512, 1024, 2048) for row in compare(tokens, seq_length, folder)]
    where = options.dataset if builtin else "WikiText-2's validation split"
    write_result(options.output, [*heading(where, tokens), *table(HEAD, rows)])


def heading(dataset: str, tokens: Tokens) -> list[str]:
    """What the page is about."""
    documents = f"{dataset}, a vocabulary of {BUILTIN_VOCABULARY:,} tokens, {len(tokens):,} documents of two tokens"
    return [
        "# What packing costs and loses",
        "",
        f"`python benchmarks/packing_modes.py`: {documents}",
        f'or more, {len(tokens.ids):,} tokens. "Useful" is the share of computed positions with a token, "lost" are '
        'tokens in no row, "cut"',
        "are documents that do not stand in one row whole. The number of rows is what an epoch costs.",
        "",
    ]


def compare(tokens: Tokens, seq_length: int, folder: Path) -> list[list[str]]:
    """A row of the table for each way of packing."""
    lengths, best = np.diff(tokens.offsets), 0
    lines = []
    for mode in ("best_fit", "concat", "pad"):
        rows = open_rows(tokens, Packing(mode=mode, seq_length=seq_length), cache_dir=folder)
        counts = statistics([rows], seq_length)
        best = best or counts.rows
        pieces = rows.table.pieces(np.arange(len(rows))).begins
        per_document = np.bincount(np.searchsorted(tokens.offsets, pieces, side="right") - 1)
        cut = (lengths > seq_length) if mode == "pad" else per_document > 1
        useful, lost = counts.tokens / (counts.rows * seq_length), counts.cut_tokens / lengths.sum()
        what = [f"{seq_length:,}", mode, f"{counts.rows:,}", f"{counts.rows / best:.2f}"]
        lines.append([*what, f"{useful:.1%}", f"{lost:.1%}", f"{cut.mean():.1%}"])
    return lines


if __name__ == "__main__":
    main()
