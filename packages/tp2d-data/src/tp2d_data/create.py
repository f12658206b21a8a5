"""`create_dataloader`: from the words of the options to a loader."""

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tp2d_data.cache import Tokeniser
from tp2d_data.examples import LossOn, Task, check_task
from tp2d_data.loader import Loader, MixtureFeed
from tp2d_data.mixture import Mixture
from tp2d_data.packing import Mode, Packing
from tp2d_data.rows import Rows, TooFewRows, open_rows, statistics
from tp2d_data.sampler import Sampler, Sharding, require_at_least, require_integer
from tp2d_data.sources import Corpus, open_corpus
from tp2d_data.storage import digest
from tp2d_data.stream import BLOCK_TOKENS, SourceStream, StreamSampler
from tp2d_data.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def create_dataloader(
    model_name: str,
    dataset_name: str | Sequence[str],
    seq_length: int,
    batch_size_per_gpu: int,
    dp_rank: int,
    dp_size: int,
    seed: int = 42,
    dataset_percentage: float = 10.0,
    *,
    dataset_weights: Sequence[float] | None = None,
    tokenizer_name: str | None = None,
    dataset_config: str | None = None,
    split: str = "train",
    loss_on: LossOn = "all",
    text_field: str = "text",
    prompt_field: str = "prompt",
    completion_field: str = "completion",
    messages_field: str = "messages",
    part: Literal["train", "eval"] = "train",
    holdout: float = 0.0,
    packing: Mode = "best_fit",
    respect_boundaries: bool = True,
    append_eos: bool | None = None,
    last_batch: Literal["drop", "pad"] = "drop",
    streaming: bool = False,
    block_tokens: int = BLOCK_TOKENS,
    num_workers: int = 1,
    prefetch: int = 2,
    device: "torch.device | str | None" = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = logger.info,
) -> Loader:
    """The batches of data parallel rank `dp_rank`; pass every tp peer of that rank the same arguments.

    Args:
        model_name: whose tokenizer to use: a hub name, a local folder, or `builtin:...`.
        dataset_name: a hub name (`wikitext` is `Salesforce/wikitext`), a local file or folder (txt with a document
            a line, jsonl, json, parquet, arrow; the first three also compressed), or `builtin:stdlib`; or several.
        seq_length: tokens of a row.
        batch_size_per_gpu: rows of this rank's batch.
        seed: of the order of samples, with the epoch; see `order`.
        dataset_percentage: how much of the split is used, from its beginning; above 0, at most 100.
        dataset_weights: of several datasets, each one's share of an epoch's rows; None: every row once.
        tokenizer_name: where the tokenizer is not the model's.
        dataset_config: of a hub dataset; of a local folder, a folder in it.
        loss_on: what a document is and what of it is learnt: `all` of the text in `text_field`, the `completion` in
            `completion_field` that follows the prompt in `prompt_field`, or what the `assistant` says in the chat in
            `messages_field`.
        part: `train`, or `eval` for the dataset's validation split, else the share held out.
        holdout: share (0 to 1) of the documents held out for `eval`, chosen by content; without effect on a dataset
            that has a validation split. Pass both parts the same.
        packing: how documents fill rows: `best_fit`, `concat` or `pad`; see `Packing`.
        respect_boundaries: whether packed documents see only themselves; batches then have `position_ids`.
        append_eos: whether every document ends with the end-of-text token; None: where `respect_boundaries` is off,
            for there it is what keeps documents apart.
        last_batch: rows that do not fill a global batch: `drop`, or `pad` them with rows that count nothing.
        streaming: tokenise block by block while training, for corpora larger than the disk; rows are shuffled within
            a block only, and the loader has no `len()`.
        block_tokens: tokens of such a block.
        num_workers: threads that prepare batches; 0: batches are made when they are asked for.
        prefetch: batches prepared ahead.
        device: a GPU to which batches are copied ahead; None: they stay on the CPU.
        cache_dir: of tokenised data; default `$TP2D_CACHE`, else `~/.cache/tp2d`.
        trust_remote_code: whether code that comes with a tokenizer may run.
        progress: is told every few seconds how far tokenising is; the default logs it.

    Raises:
        ValueError: an argument out of range; no such dataset, configuration, split, field or tokenizer; the hub is
            needed and does not answer; a document that cannot be read, by file and line.
        TooFewRows: a ValueError too; fewer rows than one global batch.
    """
    for option, value, least in (
        ("num_workers", num_workers, 0),
        ("prefetch", prefetch, 0),
        ("block_tokens", block_tokens, 1),
    ):
        require_at_least(option, require_integer(option, value), least)
    packed = Packing(mode=packing, seq_length=seq_length, respect_boundaries=respect_boundaries)
    sharding = Sharding(
        batch_size_per_gpu=batch_size_per_gpu, dp_rank=dp_rank, dp_size=dp_size, seed=seed, last_batch=last_batch
    )
    task = Task(
        loss_on=loss_on,
        text_field=text_field,
        prompt_field=prompt_field,
        completion_field=completion_field,
        messages_field=messages_field,
    )
    corpora = [
        Corpus(
            dataset_name=name,
            dataset_config=dataset_config,
            split=split,
            task=task,
            dataset_percentage=dataset_percentage,
            part=part,
            holdout=holdout,
            streaming=streaming,
            cache_dir=cache_dir,
        )
        for name in ([dataset_name] if isinstance(dataset_name, str) else dataset_name)
    ]
    weights = check_weights(dataset_weights, len(corpora), streaming=streaming)
    opened = [open_corpus(corpus) for corpus in corpora]
    tokenizer = load_tokenizer(tokenizer_name or model_name, trust_remote_code=trust_remote_code, cache_dir=cache_dir)
    ends = packed.appends_eos(append_eos)
    check_task(task, tokenizer, append_eos=ends)
    sources = [
        Tokeniser(documents=one, tokenizer=tokenizer, append_eos=ends, cache_dir=cache_dir, progress=progress)
        for one in opened
    ]
    make = partial(Loader, packing=packed, tokenizer=tokenizer, workers=num_workers, prefetch=prefetch, device=device)
    if streaming:
        return _streamed(make, sources, packed, sharding, weights=weights or [1.0], block_tokens=block_tokens)
    rows = [open_rows(source.all(), packed, cache_dir=cache_dir) for source in sources]
    _check_rows(rows, corpora, sharding, weights=weights)
    return _mapped(make, rows, packed, sharding, weights=weights)


def check_weights(weights: Sequence[float] | None, sources: int, *, streaming: bool = False) -> list[float] | None:
    """The weights of several datasets as a list.

    Raises:
        ValueError: not one for each, not above 0, or none where a stream needs them.
    """
    if not sources:
        raise ValueError("dataset_name is empty; give a hub name, a local file or folder, or builtin:stdlib")
    if weights is None:
        if streaming and sources > 1:
            raise ValueError(
                f"streaming {sources} datasets needs dataset_weights, {sources} numbers: nobody knows their sizes"
            )
        return None
    if len(weights) != sources:
        raise ValueError(f"dataset_weights has {len(weights)} numbers for {sources} datasets; give one for each")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"dataset_weights must be above 0, not {', '.join(f'{weight:g}' for weight in weights)}")
    return list(weights)


def _mapped(
    make: Callable[..., Loader], rows: list[Rows], packing: Packing, sharding: Sharding, *, weights: list[float] | None
) -> Loader:
    mixture = Mixture(rows, weights=weights, seed=sharding.seed)
    data = _name(packing, sharding, weights, [part.tokens.key for part in rows])
    sampler = Sampler(num_rows=len(mixture), sharding=sharding, data=data)
    return make(sampler=sampler, feed=MixtureFeed(sampler, mixture), statistics=statistics(rows, packing.seq_length))


def _streamed(
    make: Callable[..., Loader],
    tokenisers: list[Tokeniser],
    packing: Packing,
    sharding: Sharding,
    *,
    weights: list[float],
    block_tokens: int,
) -> Loader:
    sources = [
        SourceStream(tokeniser, packing, block_tokens=block_tokens, number=number)
        for number, tokeniser in enumerate(tokenisers)
    ]
    keys = [tokeniser.folder_of_block(0, block_tokens).name for tokeniser in tokenisers]
    sampler = StreamSampler(sources, weights=weights, sharding=sharding, data=_name(packing, sharding, weights, keys))
    return make(sampler=sampler, feed=sampler, statistics=None)


def _name(packing: Packing, sharding: Sharding, weights: list[float] | None, keys: list[str]) -> str:
    """Names rows and order: what a position belongs to. The number of ranks is no part of it."""
    return digest([packing.mode, packing.seq_length, sharding.seed, weights, keys])[:16]


def _check_rows(rows: list[Rows], corpora: list[Corpus], sharding: Sharding, *, weights: list[float] | None) -> None:
    total = sum(map(len, rows))
    needed = 1 if sharding.last_batch == "pad" else sharding.global_batch_size
    empty = [corpus.dataset_name for part, corpus in zip(rows, corpora, strict=True) if weights and not len(part)]
    if empty:
        raise TooFewRows(f"dataset {empty[0]} gives no row, so it cannot have a share of dataset_weights; leave it out")
    if total >= needed:
        return
    corpus, read = corpora[0], sum(part.tokens.read for part in rows)
    names = ", ".join(one.dataset_name for one in corpora)
    batch = f"batch_size_per_gpu {sharding.batch_size_per_gpu} x dp_size {sharding.dp_size}"
    more = "dataset_percentage or holdout" if corpus.part == "eval" else "dataset_percentage"
    raise TooFewRows(
        f"dataset {names}, part {corpus.part}: {total} rows ({read} documents at dataset_percentage "
        f"{corpus.dataset_percentage:g}) are fewer than one global batch of {sharding.global_batch_size} = {batch}; "
        f"raise {more}, or lower batch_size_per_gpu, dp_size or seq_length"
    )
