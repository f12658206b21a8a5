"""How long a run will be, as far as the driver can know it: said before the start, not after hours."""

from tp2d_train.config import TrainConfig
from tp2d_train.steps import epoch_steps, micro_batches_of, most_steps

STEPS_BEFORE_PROFILE = 2
"""Steps of a start that are not recorded: the first compiles and allocates, the second makes the profiler ready."""

STEPS_OF_PROFILE = 3
"""Steps that are recorded after them."""


def check(config: TrainConfig, *, rows: int | None) -> tuple[str, ...]:
    """What a user should know of the run's length.

    Args:
        config: the settings.
        rows: of an epoch, over all ranks; None where nobody knows them without tokenising all.

    Raises:
        ValueError: the rows do not fill one step, or the run has too few steps to record.
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
    _check_recording(config, total=total)
    if total is not None and config.warmup_steps >= total:
        return (
            f"warmup_steps {config.warmup_steps} leaves none of the run's {total} steps the full learning_rate "
            f"{config.learning_rate:g}: lower warmup_steps, or train longer",
        )
    return ()


def _check_recording(config: TrainConfig, *, total: int | None) -> None:
    """A resumed run may have fewer steps left than `total`: it records what there is, and says so."""
    needed = STEPS_BEFORE_PROFILE + STEPS_OF_PROFILE
    asked = [name for name in ("profile", "memory_snapshot") if getattr(config, name)]
    if asked and total is not None and total < needed:
        raise ValueError(
            f"{asked[0]} needs a run of {needed} steps, {STEPS_OF_PROFILE} to record after the first "
            f"{STEPS_BEFORE_PROFILE}, and this one has {total}: leave it out, or raise max_steps or num_epochs"
        )


def _more(config: TrainConfig) -> str:
    return " raise dataset_percentage," if config.dataset_percentage < 100 else ""
