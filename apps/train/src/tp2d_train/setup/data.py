"""The data of a run: whether they can be read, and this dp rank's batches."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

from tp2d_data import Loader, Sharding, Statistics, Stream, TooFewRows, load_tokenizer
from tp2d_mesh import Mesh

from tp2d_train.config import TrainConfig
from tp2d_train.setup.model import ResolvedModel

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """This dp rank's batches.

    Args:
        loader: to train on.
        held_out: to evaluate on, or None.
        warnings: what a user should know about them.
    """

    loader: Loader
    held_out: Loader | None
    warnings: tuple[str, ...]


def check(config: TrainConfig, model: ResolvedModel, *, progress: Callable[[str], None] = logger.info) -> int | None:
    """Refuses datasets that are not there or lack what is asked of them, and a tokenizer that does not fit.

    Data that are tokenised within some seconds are tokenised here, so that too few of them are refused too.

    Returns:
        The rows of an epoch over all ranks; None where they are not known before the workers have read the data.

    Raises:
        ValueError: the option, what was found, and what to do.
    """
    tokenizer = _load_tokenizer(config, model, progress=progress)
    config.data.check(tokenizer, progress=progress)
    sharding = _sharding(config, dp_rank=0)
    rows = config.data.count_rows(tokenizer, sharding=sharding, progress=progress)
    if config.eval_dataset or (config.holdout_percentage and config.eval_interval_steps is not None):
        try:
            config.data.count_rows(tokenizer, part="eval", sharding=_filled(sharding), progress=progress)
        except TooFewRows as error:
            raise _without_evaluation(error, config) from None
    return rows


def build(config: TrainConfig, *, mesh: Mesh, model: ResolvedModel, progress: Callable[[str], None]) -> Data:
    """Opens the data, which tokenises them where no rank of this machine has done so yet.

    Args:
        config: the settings.
        mesh: this rank's mesh.
        model: gives the tokenizer.
        progress: is told, by the rank that tokenises, how far it is.

    Raises:
        ValueError: as `check`, a document that cannot be read, or fewer rows than a global batch.
    """
    tokenizer = _load_tokenizer(config, model, progress=progress)
    sharding = _sharding(config, dp_rank=mesh.dp_rank)
    loader = config.data.open(tokenizer, sharding=sharding, device=mesh.device, progress=progress)
    if not (config.eval_dataset or config.holdout_percentage):
        return Data(loader=loader, held_out=None, warnings=())
    try:
        held_out = _open_held_out(config, tokenizer, sharding=_filled(sharding), mesh=mesh, progress=progress)
    except TooFewRows as error:
        if config.eval_dataset or config.eval_interval_steps is not None:
            raise _without_evaluation(error, config) from None
        return Data(loader=loader, held_out=None, warnings=(f"no evaluation, {error}{_way_out(config)}",))
    return Data(loader=loader, held_out=held_out, warnings=_warnings(config, held_out.statistics))


def check_vocabulary(tokens: int, model: Any) -> None:
    """Refuses a tokenizer with more tokens than the model has embeddings.

    Raises:
        ValueError: with both numbers.
    """
    vocabulary = model.get_text_config().vocab_size
    if tokens > vocabulary:
        raise ValueError(
            f"the tokenizer has {tokens} tokens and the model's vocab_size is {vocabulary}: "
            "set tokenizer_name to the model's own tokenizer"
        )


def _load_tokenizer(config: TrainConfig, model: ResolvedModel, *, progress: Callable[[str], None]) -> Any:
    trusted = config.trust_remote_code
    tokenizer = load_tokenizer(model.tokenizer_name, trust_remote_code=trusted, progress=progress)
    check_vocabulary(len(tokenizer), model.config)
    return tokenizer


def _sharding(config: TrainConfig, *, dp_rank: int) -> Sharding:
    return Sharding(
        batch_size_per_gpu=config.batch_size_per_gpu,
        dp_rank=dp_rank,
        dp_size=config.dp_size,
        seed=config.seed,
        last_batch=config.last_batch,
    )


def _filled(sharding: Sharding) -> Sharding:
    """For an evaluation: every row counts, so the last batch is filled up with rows that do not."""
    return dataclasses.replace(sharding, last_batch="pad")


def _open_held_out(
    config: TrainConfig, tokenizer: Any, *, sharding: Sharding, mesh: Mesh, progress: Callable[[str], None]
) -> Loader:
    """The batches to evaluate on. Of a stream, only as much as an evaluation takes."""
    data = config.data
    if data.stream is None:
        data = dataclasses.replace(data, weights=None)
    elif config.eval_batches is not None:
        tokens = config.eval_batches * sharding.global_batch_size * config.seq_length
        data = dataclasses.replace(data, stream=Stream(block_tokens=tokens))
    held_out = data.open(tokenizer, part="eval", sharding=sharding, device=mesh.device, progress=progress)
    next(iter(held_out))  # a stream is first read here; each evaluation begins anew
    return held_out


def _without_evaluation(error: TooFewRows, config: TrainConfig) -> ValueError:
    asked = "eval_dataset" if config.eval_dataset else "eval_interval_steps"
    return ValueError(f"{error}{_way_out(config)}; or leave out {asked}")


def _way_out(config: TrainConfig) -> str:
    """What to do about a stream that holds out too little, which its own message does not know."""
    if not config.streaming or config.eval_dataset:
        return ""
    return f"; raise holdout_percentage {config.holdout_percentage:g}, or name an eval_dataset"


def _warnings(config: TrainConfig, counts: Statistics | None) -> tuple[str, ...]:
    """What an evaluation on few rows is worth; nothing is known of a stream."""
    batch = config.dp_size * config.batch_size_per_gpu
    if counts is None or counts.rows >= batch:
        return ()
    more = (
        "name an eval_dataset of more documents"
        if config.eval_dataset
        else "raise holdout_percentage, name an eval_dataset, or set holdout_percentage to 0"
    )
    return (
        f"the evaluation has {counts.rows:,} rows ({counts.documents:,} documents, {counts.tokens:,} tokens), fewer "
        f"than one micro-batch of {batch} = dp_size {config.dp_size} x batch_size_per_gpu {config.batch_size_per_gpu}: "
        f"its loss says little; {more}",
    )
