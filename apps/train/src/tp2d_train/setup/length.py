"""How long a run will be, as far as the driver can know it: said before the start, not after hours."""

from tp2d_train.config import TrainConfig
from tp2d_train.steps import epoch_steps, micro_batches_of, most_steps


def check(config: TrainConfig, *, rows: int | None) -> tuple[str, ...]:
    """What a user should know of the run's length.

    Args:
        config: the settings.
        rows: of an epoch, over all ranks; None where nobody knows them without tokenising all.

    Raises:
        ValueError: the rows do not fill one step.
    """
    micro_batches = None if rows is None else micro_batches_of(config, rows=rows)
    steps = epoch_steps(config, micro_batches=micro_batches)
    if steps == 0:
        raise ValueError(
            f"dataset {', '.join(config.dataset_name)} gives {rows} rows of {config.seq_length} tokens, and a step "
            f"takes global_batch_size {config.global_batch_size} = dp_size {config.dp_size} x batch_size_per_gpu "
            f"{config.batch_size_per_gpu} x gradient_accumulation_steps {config.gradient_accumulation_steps}: lower "
            f"one of these or seq_length,{_more(config)} or fill the step up with last_batch pad"
        )
    total = most_steps(config, epoch_steps=steps)
    if total is not None and config.warmup_steps >= total:
        return (
            f"warmup_steps {config.warmup_steps} leaves none of the run's {total} steps the full learning_rate "
            f"{config.learning_rate:g}: lower warmup_steps, or train longer",
        )
    return ()


def _more(config: TrainConfig) -> str:
    return " raise dataset_percentage," if config.dataset_percentage < 100 else ""
