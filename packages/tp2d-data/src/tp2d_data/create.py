"""`create_dataloader`: the call with plain arguments, a cover over `DataSpec`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tp2d_data.loader import Loader
from tp2d_data.progress import Progress
from tp2d_data.rows.packing import Mode, Packing
from tp2d_data.sampling.sharding import LastBatch, Sharding
from tp2d_data.sampling.stream import Stream
from tp2d_data.sources.corpus import Corpus, Part
from tp2d_data.sources.own import Source
from tp2d_data.spec import DataSpec, logger
from tp2d_data.tokens.examples import LossOn, Task
from tp2d_data.tokens.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch


def create_dataloader(
    model_name: str,
    dataset_name: str | Source | Sequence[str | Source],
    seq_length: int,
    batch_size_per_gpu: int,
    dp_rank: int,
    dp_size: int,
    seed: int = Sharding.seed,
    dataset_percentage: float = Corpus.dataset_percentage,
    *,
    dataset_weights: Sequence[float] | None = DataSpec.weights,
    tokenizer_name: str | None = None,
    dataset_config: str | None = Corpus.dataset_config,
    split: str = Corpus.split,
    loss_on: LossOn = Task.loss_on,
    text_field: str = Task.text_field,
    prompt_field: str = Task.prompt_field,
    completion_field: str = Task.completion_field,
    messages_field: str = Task.messages_field,
    part: Part = "train",
    holdout_percentage: float = Corpus.holdout_percentage,
    eval_dataset: str | Source | Sequence[str | Source] = (),
    packing: Mode = Packing.mode,
    respect_boundaries: bool = Packing.respect_boundaries,
    append_eos: bool | None = Packing.append_eos,
    last_batch: LastBatch = Sharding.last_batch,
    streaming: bool = False,
    block_tokens: int = Stream.block_tokens,
    num_workers: int = 1,
    prefetch: int = 2,
    device: "torch.device | str | None" = None,
    cache_dir: str | Path | None = DataSpec.cache_dir,
    trust_remote_code: bool = False,
    progress: Progress = logger.info,
) -> Loader:
    """The batches of data parallel rank `dp_rank`; pass every tensor parallel peer of that rank the same arguments.

    Args:
        model_name: names the tokenizer: a hub name, a local folder, or `builtin:...`.
        dataset_name: a hub name (`wikitext` is `Salesforce/wikitext`), a local file or folder (txt with a document
            a line, jsonl, json, parquet, arrow; the first three also compressed), `builtin:stdlib`, or your own
            records (see `Records` and `Source`); or a list of several.
        seq_length: tokens of a row.
        batch_size_per_gpu: rows of this rank's batch.
        seed: decides the order of samples, with the epoch; see `order`.
        dataset_percentage: how much of the split is used, from its beginning; above 0, at most 100.
        dataset_weights: of several datasets, each one's share of an epoch's rows; None: every row once.
        tokenizer_name: where the tokenizer is not the model's.
        dataset_config: of a hub dataset; of a local folder, a folder in it.
        loss_on: what a document is and which of its tokens are trained on: `all` of the text in `text_field`, the
            `completion` in `completion_field` that follows the prompt in `prompt_field`, or the turns of the
            `assistant` in the chat in `messages_field`.
        part: `train`, or `eval` for `eval_dataset`, else the dataset's validation split, else the share held out.
        holdout_percentage: how many percent of the documents are held out for `eval`, chosen by content; without
            effect on a dataset that has a validation split, and beside `eval_dataset`. Pass both parts the same.
        eval_dataset: what `eval` reads, as `dataset_name`: the validation split where there is one, else `split`,
            else the only split; all of it, and never streamed. Pass both parts the same.
        packing: how documents fill rows: `best_fit`, `concat` or `pad`; see `Packing`.
        respect_boundaries: whether packed documents see only themselves; batches then have `position_ids`.
        append_eos: whether every document ends with the end-of-text token; None: where `respect_boundaries` is off,
            because there nothing else keeps documents apart.
        last_batch: rows that do not fill a global batch: `drop` them, or `pad` the batch with rows without labels.
        streaming: tokenise block by block while training, for corpora larger than the disk; rows are shuffled within
            a block only, and the loader has no `len()`.
        block_tokens: tokens of such a block.
        num_workers: threads that prepare batches; 0: batches are made when they are asked for.
        prefetch: batches prepared ahead.
        device: a GPU to which batches are copied ahead; None: they stay on the CPU.
        cache_dir: of tokenised data; default `$TP2D_CACHE`, else `~/.cache/tp2d`.
        trust_remote_code: whether code that comes with a tokenizer may run.
        progress: is told every few seconds how far tokenising is, and what else takes so long; the default logs it.

    Raises:
        ValueError: an argument out of range; no such dataset, configuration, split, field or tokenizer; the hub is
            needed and does not answer; a document that cannot be read, by file and line.
        TooFewRows: a ValueError too; fewer rows than one global batch.
    """
    stream = Stream(block_tokens=block_tokens)
    spec = DataSpec(
        corpora=tuple(
            Corpus(
                dataset_name=name,
                dataset_config=dataset_config,
                split=split,
                dataset_percentage=dataset_percentage,
                holdout_percentage=holdout_percentage,
            )
            for name in _several(dataset_name)
        ),
        eval_corpora=tuple(Corpus(dataset_name=name, split=split) for name in _several(eval_dataset)),
        weights=None if dataset_weights is None else tuple(dataset_weights),
        task=Task(
            loss_on=loss_on,
            text_field=text_field,
            prompt_field=prompt_field,
            completion_field=completion_field,
            messages_field=messages_field,
        ),
        packing=Packing(
            mode=packing, seq_length=seq_length, respect_boundaries=respect_boundaries, append_eos=append_eos
        ),
        stream=stream if streaming else None,
        cache_dir=cache_dir,
    )
    sharding = Sharding(
        batch_size_per_gpu=batch_size_per_gpu, dp_rank=dp_rank, dp_size=dp_size, seed=seed, last_batch=last_batch
    )
    tokenizer = load_tokenizer(
        tokenizer_name or model_name, trust_remote_code=trust_remote_code, cache_dir=cache_dir, progress=progress
    )
    return spec.open(
        tokenizer,
        part=part,
        sharding=sharding,
        device=device,
        num_workers=num_workers,
        prefetch=prefetch,
        progress=progress,
    )


def _several(given: str | Source | Sequence[str | Source]) -> Sequence[str | Source]:
    """The datasets of an argument that may be one or a list of them."""
    if isinstance(given, list | tuple):
        return given
    one: Any = given
    return [one]
