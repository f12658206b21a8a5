"""What a driver says to its user, as the options ask for it."""

from collections.abc import Callable

from tp2d_train.config import TrainConfig
from tp2d_train.report.progress import LiveView
from tp2d_train.runs.run import Run


def live_view(run: Run) -> LiveView:
    """The view of a run's events."""
    return LiveView(run.folder, progress=run.config.progress, log_level=run.config.log_level)


def say(config: TrainConfig) -> Callable[[str], None]:
    """What shows the phases before there is a view; it shows none where the options leave phases out."""
    silent = config.progress == "quiet" or config.log_level not in ("debug", "info")
    return (lambda text: None) if silent else lambda text: print(text, flush=True)
