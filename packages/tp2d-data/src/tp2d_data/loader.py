"""The batches of one data parallel rank."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from tp2d_data.cache import Rows, load_rows
from tp2d_data.labels import causal_labels
from tp2d_data.sampler import Sampler, Sharding, require_at_least, require_integer
from tp2d_data.sources import Corpus, open_corpus
from tp2d_data.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class TooFewRows(ValueError):
    """The data give fewer rows than one global batch; the message has the counts."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What became of the documents; the counts are of one epoch over all ranks."""

    documents: int  # read
    rows: int  # documents with at least two tokens; the others are dropped
    tokens: int  # in the rows after cutting
    cut_tokens: int  # lost because a row was longer than seq_length
    padded_tokens: int  # computed on besides the tokens


class Loader:
    """Batches of one data parallel rank, made by `create_dataloader`; iterate it once per epoch.

    A batch is a dict of int64 CPU tensors, each (batch_size_per_gpu, seq_length): `input_ids` and `attention_mask`,
    padded on the right, and `labels`, -100 on padding and not shifted. `len()` is the number of batches of a whole
    epoch.
    """

    def __init__(self, *, rows: Rows, sampler: Sampler, seq_length: int, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._rows = rows
        self.sampler = sampler
        self.seq_length = seq_length
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        self.pad_token_id = tokenizer.pad_token_id
        self.statistics = _statistics(rows, seq_length)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, "torch.Tensor"]]:
        return map(self._batch, self.sampler)

    def state_dict(self) -> dict[str, int]:
        """The position as JSON: `epoch`, and `samples`, those handed out in it so far over all ranks.

        Exact in the middle of an epoch: the batch handed out last counts as consumed, and nothing after it. Equal on
        every rank.
        """
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Lets the next iteration go on with the sample after those counted in `state`.

        The state may come from another dp size and another batch size; `sampler.set_epoch` with the same epoch
        keeps the position. A position at the end of its epoch leaves an iteration without batches.

        Raises:
            ValueError: not a position, or one outside these data.
        """
        self.sampler.load_state_dict(state)

    def _batch(self, numbers: NDArray[np.int64]) -> dict[str, "torch.Tensor"]:
        # Here, so that the driver's checks need no torch.
        import torch

        input_ids, mask = pad_rows(self._rows, numbers, seq_length=self.seq_length, pad_token_id=self.pad_token_id)
        batch = {"input_ids": input_ids, "attention_mask": mask, "labels": causal_labels(input_ids, mask)}
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def create_dataloader(
    model_name: str,
    dataset_name: str,
    seq_length: int,
    batch_size_per_gpu: int,
    dp_rank: int,
    dp_size: int,
    seed: int = 42,
    dataset_percentage: float = 10.0,
    *,
    tokenizer_name: str | None = None,
    dataset_config: str | None = None,
    split: str = "train",
    text_field: str = "text",
    part: Literal["train", "eval"] = "train",
    holdout: float = 0.0,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Loader:
    """The batches of data parallel rank `dp_rank`; pass every tp peer of that rank the same arguments.

    Args:
        model_name: whose tokenizer to use: a hub name, a local folder, or `builtin:...`.
        dataset_name: a hub name (`wikitext` is `Salesforce/wikitext`), a local file or folder (txt with a document
            a line, jsonl, json, parquet, arrow), or `builtin:stdlib`.
        seq_length: tokens of a row; longer documents are cut, shorter ones padded on the right.
        batch_size_per_gpu: rows of this rank's batch.
        seed: of the order of samples, with the epoch; see `order`.
        dataset_percentage: how much of the split is used, from its beginning; above 0, at most 100.
        tokenizer_name: where the tokenizer is not the model's.
        dataset_config: of a hub dataset; of a local folder, a folder in it.
        text_field: the field that holds the text.
        part: `train`, or `eval` for the dataset's validation split, else the share held out.
        holdout: share (0 to 1) of the documents held out for `eval`, chosen by content; without effect on a dataset
            that has a validation split. Pass both parts the same.
        cache_dir: of tokenised data; default `$TP2D_CACHE`, else `~/.cache/tp2d`.
        trust_remote_code: whether code that comes with a tokenizer may run.

    Raises:
        ValueError: an argument out of range; no such dataset, configuration, split, field or tokenizer; the hub is
            needed and does not answer.
        TooFewRows: a ValueError too; fewer rows than one global batch.
    """
    require_at_least("seq_length", require_integer("seq_length", seq_length), 2)
    sharding = Sharding(batch_size_per_gpu=batch_size_per_gpu, dp_rank=dp_rank, dp_size=dp_size, seed=seed)
    corpus = Corpus(
        dataset_name=dataset_name,
        dataset_config=dataset_config,
        split=split,
        text_field=text_field,
        dataset_percentage=dataset_percentage,
        part=part,
        holdout=holdout,
        cache_dir=cache_dir,
    )
    documents = open_corpus(corpus)
    tokenizer = load_tokenizer(tokenizer_name or model_name, trust_remote_code=trust_remote_code, cache_dir=cache_dir)
    rows = load_rows(documents, tokenizer=tokenizer, cache_dir=cache_dir)
    if len(rows) < sharding.global_batch_size:
        raise TooFewRows(_too_few(corpus, rows, sharding))
    sampler = Sampler(num_rows=len(rows), sharding=sharding)
    return Loader(rows=rows, sampler=sampler, seq_length=seq_length, tokenizer=tokenizer)


def pad_rows(
    rows: Rows, numbers: NDArray[np.int64], *, seq_length: int, pad_token_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows `numbers`, (batch,), cut and padded on the right: token ids and attention mask, each (batch, seq_length)."""
    begins = rows.offsets[numbers]
    lengths = np.minimum(rows.offsets[numbers + 1] - begins, seq_length)
    columns = np.arange(seq_length)
    real = columns < lengths[:, None]
    input_ids = np.full(real.shape, pad_token_id, dtype=np.int64)
    input_ids[real] = rows.tokens[(begins[:, None] + columns)[real]]
    return input_ids, real.astype(np.int64)


def _statistics(rows: Rows, seq_length: int) -> Statistics:
    tokens = rows.kept_tokens(seq_length)
    return Statistics(
        documents=rows.documents,
        rows=len(rows),
        tokens=tokens,
        cut_tokens=len(rows.tokens) - tokens,
        padded_tokens=len(rows) * seq_length - tokens,
    )


def _too_few(corpus: Corpus, rows: Rows, sharding: Sharding) -> str:
    batch = f"batch_size_per_gpu {sharding.batch_size_per_gpu} x dp_size {sharding.dp_size}"
    more = "dataset_percentage or holdout" if corpus.part == "eval" else "dataset_percentage"
    return (
        f"dataset {corpus.dataset_name}, part {corpus.part}: {len(rows)} rows of at least 2 tokens ({rows.documents} "
        f"documents at dataset_percentage {corpus.dataset_percentage:g}) are fewer than one global batch of "
        f"{sharding.global_batch_size} = {batch}; raise {more}, or lower batch_size_per_gpu or dp_size"
    )
