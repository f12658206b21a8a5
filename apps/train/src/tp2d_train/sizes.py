"""The sizes that follow from one another: those of the mesh, and those of an optimizer step."""

DEFAULT_WORKERS = 4


def mesh_sizes(*, tp: int, dp: int | None, workers: int | None) -> tuple[int, int]:
    """`(dp_size, num_workers)` for what is given of them.

    Raises:
        ValueError: they do not fit one another.
    """
    if workers is None:
        workers = DEFAULT_WORKERS if dp is None else dp * tp
    if dp is None:
        dp = max(1, workers // tp)
    if dp * tp != workers:
        raise ValueError(
            f"tp_size {tp} x dp_size {dp} = {dp * tp}, but num_workers is {workers}: "
            "change one of them, or leave out dp_size or num_workers and it follows from the others"
        )
    return dp, workers


def batch_sizes(*, dp: int, per_gpu: int, steps: int | None, rows: int | None) -> tuple[int, int]:
    """`(gradient_accumulation_steps, global_batch_size)` for what is given of them.

    Raises:
        ValueError: they do not fit one another.
    """
    micro = dp * per_gpu
    steps = steps or (1 if rows is None else max(1, rows // micro))
    if rows not in (None, micro * steps):
        raise ValueError(
            f"global_batch_size {rows} is not dp_size {dp} x batch_size_per_gpu {per_gpu} x "
            f"gradient_accumulation_steps {steps} = {micro * steps}: "
            f"choose a multiple of {micro} and leave out gradient_accumulation_steps"
        )
    return steps, micro * steps


def agreed(per_gpu: int | None, batch_size: int) -> int:
    """The rows of a micro-batch, of which `batch_size` is another name.

    Raises:
        ValueError: both are given, and differ.
    """
    if per_gpu not in (None, batch_size):
        raise ValueError(
            f"batch_size_per_gpu is {per_gpu} and its other name batch_size is {batch_size}: give one of them"
        )
    return batch_size
