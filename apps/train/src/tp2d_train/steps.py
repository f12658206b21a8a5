"""How many optimizer steps an epoch and a run have: pure arithmetic, for the driver's checks and for the loop.

An optimizer step takes `gradient_accumulation_steps` micro-batches. An epoch leaves out its last micro-batches that do
not fill a step, so that every step has the same global batch (another epoch has another order and leaves out other
rows). With `last_batch=pad` they make one more step.
"""

from tp2d_train.config import TrainConfig


def micro_batches_of(config: TrainConfig, *, rows: int) -> int:
    """The micro-batches of each dp rank in an epoch of so many rows, as tp2d-data counts them."""
    size = config.dp_size * config.batch_size_per_gpu
    return -(-rows // size) if config.last_batch == "pad" else rows // size


def epoch_steps(config: TrainConfig, *, micro_batches: int | None) -> int | None:
    """The steps of a whole epoch of so many micro-batches; None where nobody knows.

    Args:
        config: the settings.
        micro_batches: None for a stream, or where they are not known yet; then `debug_steps` alone tells.
    """
    steps = config.debug_steps or None
    if micro_batches is None:
        return steps
    accumulation = config.gradient_accumulation_steps
    filled = micro_batches + (accumulation - 1 if config.last_batch == "pad" else 0)
    return min(filled // accumulation, steps or filled)


def most_steps(config: TrainConfig, *, epoch_steps: int | None) -> int | None:
    """The most steps that a run from its beginning can have; None where nobody knows."""
    epochs = None if epoch_steps is None else config.num_epochs * epoch_steps
    return min((steps for steps in (epochs, config.max_steps) if steps is not None), default=None)
