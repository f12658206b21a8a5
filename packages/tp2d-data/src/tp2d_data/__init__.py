"""From a corpus to the batches of a data parallel rank: resumable, the same order on every mesh."""

from importlib.metadata import version

from tp2d_data.create import check_weights, create_dataloader
from tp2d_data.examples import Task, check_task
from tp2d_data.hub import hub_reachable
from tp2d_data.loader import Loader
from tp2d_data.packing import Packing
from tp2d_data.rows import Statistics, TooFewRows
from tp2d_data.sampler import order
from tp2d_data.sources import Corpus, check_source
from tp2d_data.tokenizer import load_tokenizer

__version__ = version("tp2d-data")

__all__ = [
    "Corpus",
    "Loader",
    "Packing",
    "Statistics",
    "Task",
    "TooFewRows",
    "__version__",
    "check_source",
    "check_task",
    "check_weights",
    "create_dataloader",
    "hub_reachable",
    "load_tokenizer",
    "order",
]
