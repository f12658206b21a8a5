"""`DataSpec`: which data a job trains on, in one value that a driver checks and every rank opens."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tp2d_data.loader import Loader
from tp2d_data.progress import Progress
from tp2d_data.rows.packing import Packing
from tp2d_data.rows.rows import Rows, Statistics, TooFewRows, open_rows, statistics
from tp2d_data.sampling.mixture import Mixture
from tp2d_data.sampling.sampler import Sampler
from tp2d_data.sampling.sharding import Sharding
from tp2d_data.sampling.stream import SourceStream, Stream, Streams
from tp2d_data.sources.corpus import Corpus, Documents, Part, open_corpus, open_evaluation_corpus
from tp2d_data.storage import hash_of
from tp2d_data.tokens.cache import Tokeniser
from tp2d_data.tokens.examples import Task, check_task
from tp2d_data.values import require_at_least, require_integer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

QUICK_BYTES = 32 << 20
"""Local text that is tokenised within some seconds."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which documents are read, which of their tokens are trained on, and how they fill rows; checks itself.

    Args:
        corpora: the datasets, at least one.
        eval_corpora: datasets to evaluate on, in place of the validation split or the held-out share. With them
            nothing of `corpora` is held out. They are read whole and not streamed.
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
    eval_corpora: tuple[Corpus, ...] = ()
    weights: tuple[float, ...] | None = None
    task: Task = field(default_factory=Task)
    packing: Packing
    stream: Stream | None = None
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError("dataset_name is empty; give a hub name, a local file or folder, or builtin:stdlib")
        _check_weights(self.weights, len(self.corpora), streaming=self.stream is not None)

    def check(self, tokenizer: "PreTrainedTokenizerBase | None" = None, *, progress: Progress = logger.info) -> None:
        """Raises what `open` would raise about the datasets, the task and the tokenizer, at once: nothing is tokenised.

        A hub name costs one question to the hub and the reading of the dataset's card.

        Args:
            tokenizer: None: what needs it is left unchecked, and neither torch nor transformers is loaded.
            progress: is told what takes more than some seconds.

        Raises:
            ValueError: no such dataset, configuration, split or field; an empty split; a percentage of a stream whose
                size nobody knows; the hub does not answer and the dataset is not cached; a tokenizer without the token
                or the chat template that the task needs.
        """
        self._of("train")._documents("train", progress=progress)
        if self.eval_corpora:
            self._of("eval")._documents("eval", progress=progress)
        if tokenizer is not None:
            check_task(self.task, tokenizer, append_eos=self.packing.appends_eos)

    def count_rows(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        part: Part = "train",
        sharding: Sharding,
        progress: Progress = logger.info,
    ) -> int | None:
        """The rows of an epoch over all ranks, where some seconds suffice to find out; else None.

        That is so for local text of at most 32 MB, which is tokenised for it (ranks on this machine then find it in
        the cache), and for what is tokenised already.

        Args:
            tokenizer: as for `open`.
            part: as for `open`.
            sharding: of any rank.
            progress: as for `open`.

        Raises:
            ValueError: as `open`.
            TooFewRows: as `open`.
        """
        spec = self._of(part)
        if spec.stream is not None:
            return None
        opened = spec._documents(part, progress=progress)
        sizes = [documents.size for documents in opened]
        elsewhere = [documents for documents, size in zip(opened, sizes, strict=True) if size is None]
        known = all(spec._tokeniser(documents, tokenizer, progress=progress).is_cached for documents in elsewhere)
        if not known or sum(filter(None, sizes)) > QUICK_BYTES:
            return None
        counts = self.open(tokenizer, part=part, sharding=sharding, progress=progress).statistics
        return None if counts is None else counts.rows

    def open(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        part: Part = "train",
        sharding: Sharding,
        device: "torch.device | str | None" = None,
        num_workers: int = 1,
        prefetch: int = 2,
        progress: Progress = logger.info,
    ) -> Loader:
        """The batches of data parallel rank `sharding.dp_rank`; tensor parallel peers of that rank pass the same.

        Args:
            tokenizer: with a padding token, see `load_tokenizer`.
            part: `train`, or `eval` for `eval_corpora`, else the dataset's validation split, else the share held out.
            sharding: this rank's share of every global batch, and the seed of the order.
            device: a GPU to which batches are copied ahead; None: they stay on the CPU.
            num_workers: threads that prepare batches; 0: batches are made when they are asked for.
            prefetch: batches prepared ahead.
            progress: is told every few seconds how far tokenising is, and what else takes so long, by the process of
                a machine that does it; maybe from another thread. The default logs it.

        Raises:
            ValueError: as `check`; nothing to evaluate on; a document that cannot be read, by file and line.
            TooFewRows: a ValueError too; fewer rows than one global batch.
        """
        require_at_least("num_workers", require_integer("num_workers", num_workers), 0)
        require_at_least("prefetch", require_integer("prefetch", prefetch), 0)
        spec = self._of(part)
        opened = spec._documents(part, progress=progress)
        check_task(self.task, tokenizer, append_eos=self.packing.appends_eos)
        sources = [spec._tokeniser(documents, tokenizer, progress=progress) for documents in opened]
        if spec.stream is not None:
            sampler, counts = spec._stream_sampler(sources, spec.stream, sharding=sharding), None
        else:
            rows = [
                open_rows(source.all(), self.packing, cache_dir=self.cache_dir, progress=progress) for source in sources
            ]
            counts = statistics(rows, self.packing.seq_length)
            spec._check_rows(rows, counts, opened, part=part, sharding=sharding)
            sampler = spec._sampler(rows, sharding=sharding)
        return Loader(
            sampler=sampler,
            packing=self.packing,
            tokenizer=tokenizer,
            statistics=counts,
            num_workers=num_workers,
            prefetch=prefetch,
            device=device,
        )

    def _of(self, part: Part) -> "DataSpec":
        """What `part` reads, with `eval_corpora` in the place of `corpora` where they are its data."""
        if not self.eval_corpora:
            return self
        if part == "eval":
            return replace(self, corpora=self.eval_corpora, weights=None, stream=None)
        return replace(self, corpora=tuple(replace(corpus, holdout_percentage=0.0) for corpus in self.corpora))

    def _documents(self, part: Part, *, progress: Progress) -> list[Documents]:
        fields, cache_dir = self.task.fields, self.cache_dir
        if part == "eval" and self.eval_corpora:
            return [
                open_evaluation_corpus(corpus, fields=fields, cache_dir=cache_dir, progress=progress)
                for corpus in self.corpora
            ]
        streaming = self.stream is not None
        return [
            open_corpus(corpus, fields=fields, part=part, streaming=streaming, cache_dir=cache_dir, progress=progress)
            for corpus in self.corpora
        ]

    def _tokeniser(
        self, documents: Documents, tokenizer: "PreTrainedTokenizerBase", *, progress: Progress
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

    def _check_rows(
        self, rows: list[Rows], counts: Statistics, opened: list[Documents], *, part: Part, sharding: Sharding
    ) -> None:
        named = zip(rows, self.corpora, strict=True)
        if empty := [corpus.name for some, corpus in named if self.weights and not len(some)]:
            raise TooFewRows(
                f"dataset {empty[0]} gives no row, so it cannot have a share of dataset_weights; leave it out"
            )
        if counts.rows >= (1 if sharding.last_batch == "pad" else sharding.global_batch_size):
            return
        names = ", ".join(corpus.name for corpus in self.corpora)
        what = f"dataset {names}: {counts.rows} rows to {'train' if part == 'train' else 'evaluate'} on"
        batch = f"batch_size_per_gpu {sharding.batch_size_per_gpu} x dp_size {sharding.dp_size}"
        way_out = self._more_to_train_on() if part == "train" else self._more_to_evaluate_on(opened)
        raise TooFewRows(
            f"{what}, of {_described(counts)}, are fewer than one global batch of {sharding.global_batch_size} = "
            f"{batch}; {way_out}"
        )

    def _more_to_train_on(self) -> str:
        more = "raise dataset_percentage" if self.corpora[0].dataset_percentage < 100 else "give more documents"
        return f"{more}, lower batch_size_per_gpu, dp_size or seq_length, or set last_batch to pad"

    def _more_to_evaluate_on(self, opened: list[Documents]) -> str:
        if self.eval_corpora:
            return "name an eval_dataset of more documents"
        more = (
            f"raise holdout_percentage {self.corpora[0].holdout_percentage:g}, or " if opened[0].held_out_share else ""
        )
        return f"{more}name an eval_dataset, or set holdout_percentage to 0 and do not evaluate"


def _described(counts: Statistics) -> str:
    """The documents that a part has, and what became of them."""
    share = "" if counts.available is None else f" (the dataset has {counts.available}, see dataset_percentage)"
    dropped = "".join(f", {count} left out ({reason})" for reason, count in counts.dropped.items())
    return f"{counts.documents} documents{share}{dropped}"


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
