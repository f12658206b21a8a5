"""`DataSpec`: which data a job trains on, in one value that a driver checks and every rank opens."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tp2d_data.loader import Loader
from tp2d_data.rows.packing import Packing
from tp2d_data.rows.rows import Rows, TooFewRows, open_rows, statistics
from tp2d_data.sampling.mixture import Mixture
from tp2d_data.sampling.sampler import Sampler
from tp2d_data.sampling.sharding import Sharding
from tp2d_data.sampling.stream import SourceStream, Stream, Streams
from tp2d_data.sources.corpus import Corpus, Documents, Part, open_corpus
from tp2d_data.storage import hash_of
from tp2d_data.tokens.cache import Tokeniser
from tp2d_data.tokens.examples import Task, check_task
from tp2d_data.values import require_at_least, require_integer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which documents are read, which of their tokens are trained on, and how they fill rows; checks itself.

    Args:
        corpora: the datasets, at least one.
        weights: of several datasets, each one's share of an epoch's rows; None: every row once.
        task: what a record is and which of its tokens are trained on.
        packing: how documents fill rows.
        stream: tokenise block by block while training, for corpora larger than the disk; rows are shuffled within a
            block only, and the loader has no `len()`. None: everything is tokenised before the first batch.
        cache_dir: of tokenised data; default `$TP2D_CACHE`, else `~/.cache/tp2d`.

    Raises:
        ValueError: no corpus; weights that are not one for each corpus, not above 0, or missing for several streams.
    """

    corpora: tuple[Corpus, ...]
    weights: tuple[float, ...] | None = None
    task: Task = field(default_factory=Task)
    packing: Packing
    stream: Stream | None = None
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError("dataset_name is empty; give a hub name, a local file or folder, or builtin:stdlib")
        _check_weights(self.weights, len(self.corpora), streaming=self.stream is not None)

    def check(self, tokenizer: "PreTrainedTokenizerBase | None" = None) -> None:
        """Raises what `open` would raise about the datasets, the task and the tokenizer, at once: nothing is tokenised.

        A hub name costs one question to the hub and the reading of the dataset's card.

        Args:
            tokenizer: None: what needs it is left unchecked, and neither torch nor transformers is loaded.

        Raises:
            ValueError: no such dataset, configuration, split or field; an empty split; a percentage of a stream whose
                size nobody knows; the hub does not answer and the dataset is not cached; a tokenizer without the token
                or the chat template that the task needs.
        """
        for corpus in self.corpora:
            open_corpus(corpus, fields=self.task.fields, streaming=self.stream is not None, cache_dir=self.cache_dir)
        if tokenizer is not None:
            check_task(self.task, tokenizer, append_eos=self.packing.appends_eos)

    def open(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        part: Part = "train",
        sharding: Sharding,
        device: "torch.device | str | None" = None,
        num_workers: int = 1,
        prefetch: int = 2,
        progress: Callable[[str], None] = logger.info,
    ) -> Loader:
        """The batches of data parallel rank `sharding.dp_rank`; tensor parallel peers of that rank pass the same.

        Args:
            tokenizer: with a padding token, see `load_tokenizer`.
            part: `train`, or `eval` for the dataset's validation split, else the share held out.
            sharding: this rank's share of every global batch, and the seed of the order.
            device: a GPU to which batches are copied ahead; None: they stay on the CPU.
            num_workers: threads that prepare batches; 0: batches are made when they are asked for.
            prefetch: batches prepared ahead.
            progress: is told every few seconds how far tokenising is; the default logs it.

        Raises:
            ValueError: as `check`; nothing to evaluate on; a document that cannot be read, by file and line.
            TooFewRows: a ValueError too; fewer rows than one global batch.
        """
        require_at_least("num_workers", require_integer("num_workers", num_workers), 0)
        require_at_least("prefetch", require_integer("prefetch", prefetch), 0)
        streaming = self.stream is not None
        opened = [
            open_corpus(corpus, fields=self.task.fields, part=part, streaming=streaming, cache_dir=self.cache_dir)
            for corpus in self.corpora
        ]
        check_task(self.task, tokenizer, append_eos=self.packing.appends_eos)
        sources = [self._tokeniser(documents, tokenizer, progress=progress) for documents in opened]
        if self.stream is not None:
            sampler, counts = self._stream_sampler(sources, self.stream, sharding=sharding), None
        else:
            rows = [open_rows(source.all(), self.packing, cache_dir=self.cache_dir) for source in sources]
            self._check_rows(rows, part=part, sharding=sharding)
            sampler, counts = self._sampler(rows, sharding=sharding), statistics(rows, self.packing.seq_length)
        return Loader(
            sampler=sampler,
            packing=self.packing,
            tokenizer=tokenizer,
            statistics=counts,
            num_workers=num_workers,
            prefetch=prefetch,
            device=device,
        )

    def _tokeniser(
        self, documents: Documents, tokenizer: "PreTrainedTokenizerBase", *, progress: Callable[[str], None]
    ) -> Tokeniser:
        return Tokeniser(
            documents=documents,
            task=self.task,
            tokenizer=tokenizer,
            append_eos=self.packing.appends_eos,
            cache_dir=self.cache_dir,
            progress=progress,
        )

    def _sampler(self, rows: list[Rows], *, sharding: Sharding) -> Sampler[Any]:
        data = self._name(self.weights, [part.tokens.key for part in rows], seed=sharding.seed)
        return Sampler(Mixture(rows, weights=self.weights, sharding=sharding), data=data)

    def _stream_sampler(self, sources: list[Tokeniser], stream: Stream, *, sharding: Sharding) -> Sampler[Any]:
        weights = self.weights or (1.0,)
        keys = [source.folder_of_block(0, stream.block_tokens).name for source in sources]
        blocks = [
            SourceStream(source, packing=self.packing, stream=stream, number=number)
            for number, source in enumerate(sources)
        ]
        data = self._name(weights, keys, seed=sharding.seed)
        return Sampler(Streams(blocks, weights=weights, sharding=sharding), data=data)

    def _name(self, weights: Sequence[float] | None, keys: list[str], *, seed: int) -> str:
        """A hash of the rows and their order, which a position belongs to. The number of ranks is no part of it."""
        return hash_of([self.packing.mode, self.packing.seq_length, seed, weights, keys])[:16]

    def _check_rows(self, rows: list[Rows], *, part: Part, sharding: Sharding) -> None:
        named = zip(rows, self.corpora, strict=True)
        empty = [corpus.dataset_name for some, corpus in named if self.weights and not len(some)]
        if empty:
            raise TooFewRows(
                f"dataset {empty[0]} gives no row, so it cannot have a share of dataset_weights; leave it out"
            )
        total, read = sum(map(len, rows)), sum(some.tokens.read for some in rows)
        if total >= (1 if sharding.last_batch == "pad" else sharding.global_batch_size):
            return
        names = ", ".join(corpus.dataset_name for corpus in self.corpora)
        batch = f"batch_size_per_gpu {sharding.batch_size_per_gpu} x dp_size {sharding.dp_size}"
        more = "dataset_percentage or holdout" if part == "eval" else "dataset_percentage"
        raise TooFewRows(
            f"dataset {names}, part {part}: {total} rows ({read} documents at dataset_percentage "
            f"{self.corpora[0].dataset_percentage:g}) are fewer than one global batch of {sharding.global_batch_size} "
            f"= {batch}; raise {more}, or lower batch_size_per_gpu, dp_size or seq_length"
        )


def _check_weights(weights: Sequence[float] | None, corpora: int, *, streaming: bool) -> None:
    if weights is None:
        if streaming and corpora > 1:
            raise ValueError(
                f"streaming {corpora} datasets needs dataset_weights, {corpora} numbers: nobody knows their sizes"
            )
        return
    if len(weights) != corpora:
        raise ValueError(f"dataset_weights has {len(weights)} numbers for {corpora} datasets; give one for each")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"dataset_weights must be above 0, not {', '.join(f'{weight:g}' for weight in weights)}")
