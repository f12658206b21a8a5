"""The data of a run: whether they can be read, and this dp rank's batches."""

import dataclasses
from collections.abc import Callable
from typing import Any

from tp2d_data import Loader, Sharding, Stream, TooFewRows, load_tokenizer
from tp2d_mesh import Mesh

from tp2d_train.config import TrainConfig
from tp2d_train.setup.model import ResolvedModel


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


def check(config: TrainConfig, model: ResolvedModel) -> None:
    """Refuses datasets that are not there or lack what is asked of them, and a tokenizer that does not fit.

    Raises:
        ValueError: the option, what was found, and what to do.
    """
    config.data.check(_load_tokenizer(config, model))


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
    tokenizer = _load_tokenizer(config, model)
    sharding = Sharding(
        batch_size_per_gpu=config.batch_size_per_gpu,
        dp_rank=mesh.dp_rank,
        dp_size=mesh.layout.dp,
        seed=config.seed,
        last_batch=config.last_batch,
    )
    loader = config.data.open(tokenizer, sharding=sharding, device=mesh.device, progress=progress)
    if not config.holdout_percentage:
        return Data(loader=loader, held_out=None, warnings=())
    try:
        held_out = _open_held_out(config, tokenizer, sharding=sharding, mesh=mesh, progress=progress)
    except TooFewRows as error:
        if config.eval_interval_steps is not None:
            raise ValueError(f"{error}; or leave out eval_interval_steps") from None
        return Data(loader=loader, held_out=None, warnings=(f"no evaluation, {error}",))
    return Data(loader=loader, held_out=held_out, warnings=())


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


def _load_tokenizer(config: TrainConfig, model: ResolvedModel) -> Any:
    tokenizer = load_tokenizer(model.tokenizer_name, trust_remote_code=config.trust_remote_code)
    check_vocabulary(len(tokenizer), model.config)
    return tokenizer


def _open_held_out(
    config: TrainConfig, tokenizer: Any, *, sharding: Sharding, mesh: Mesh, progress: Callable[[str], None]
) -> Loader:
    """The batches to evaluate on, the last one filled up. Of a stream, only as much as an evaluation takes."""
    data = config.data
    if data.stream is None:
        data = dataclasses.replace(data, weights=None)
    elif config.eval_batches is not None:
        tokens = config.eval_batches * sharding.global_batch_size * config.seq_length
        data = dataclasses.replace(data, stream=Stream(block_tokens=tokens))
    filled = dataclasses.replace(sharding, last_batch="pad")
    held_out = data.open(tokenizer, part="eval", sharding=filled, device=mesh.device, progress=progress)
    next(iter(held_out))  # a stream is first read here; each evaluation begins anew
    return held_out
