"""What the ways of packing cost and lose, on real text: `python benchmarks/packing_modes.py`.

Writes `benchmarks/results/packing_modes.md`. The text is `../shared/data/wikitext2` (a line a document) with a
byte-level BPE vocabulary of 4,096 trained on it, or with `--dataset builtin:stdlib` the built-in one.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from tp2d_data import load_tokenizer
from tp2d_data.cache import Tokeniser, Tokens
from tp2d_data.packing import Packing
from tp2d_data.rows import open_rows, statistics
from tp2d_data.sources import Corpus, Documents, open_corpus
from tp2d_data.tokenizer import _train

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "packing_modes.md"
HEAD = """# What packing costs and loses

`python benchmarks/packing_modes.py`: {dataset}, a vocabulary of 4,096 tokens, {documents:,} documents of two tokens
or more, {tokens:,} tokens. "Useful" is the share of computed positions with a token, "lost" are tokens in no row, "cut"
are documents that do not stand in one row whole. The number of rows is what an epoch costs.

| seq_length | packing | rows | rows / best_fit | useful | lost | cut documents |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default=str(ROOT.parent / "shared" / "data" / "wikitext2"))
    dataset = parser.parse_args().dataset
    builtin = dataset.startswith("builtin:")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = open_corpus(Corpus(dataset_name=dataset, dataset_percentage=100))
        tokenizer = load_tokenizer("builtin:tiny" if builtin else train_tokenizer(folder / "model", corpus))
        tokens = Tokeniser(documents=corpus, tokenizer=tokenizer, append_eos=False, cache_dir=folder).all()
        table = "\n".join(line for seq_length in (256, 512, 1024, 2048) for line in compare(tokens, seq_length, folder))
        words = "builtin:stdlib" if builtin else "WikiText-2's validation split"
        text = HEAD.format(dataset=words, documents=len(tokens), tokens=len(tokens.ids)) + table + "\n"
    RESULT.write_text(text)
    print(text)


def train_tokenizer(folder: Path, corpus: Documents) -> str:
    folder.mkdir()
    _train((record.values[0] for record in corpus), folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


def compare(tokens: Tokens, seq_length: int, folder: Path) -> list[str]:
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
        lines.append(
            f"| {seq_length:,} | {mode} | {counts.rows:,} | {counts.rows / best:.2f} | {useful:.1%} | {lost:.1%} "
            f"| {cut.mean():.1%} |"
        )
    return lines


if __name__ == "__main__":
    main()
