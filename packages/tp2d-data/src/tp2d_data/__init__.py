"""From a corpus to the batches of a data parallel rank: resumable, the same order on every mesh."""

from importlib.metadata import version

from tp2d_data.create import create_dataloader
from tp2d_data.loader import Loader
from tp2d_data.rows.collate import IGNORED
from tp2d_data.rows.packing import Mode, Packing
from tp2d_data.rows.rows import Statistics, TooFewRows
from tp2d_data.sampling.permutation import order
from tp2d_data.sampling.sharding import LastBatch, Sharding
from tp2d_data.sampling.stream import Stream
from tp2d_data.sources.corpus import Corpus
from tp2d_data.sources.hub import hub_reachable
from tp2d_data.sources.own import Records, Source
from tp2d_data.spec import DataSpec
from tp2d_data.tokens.examples import LossOn, Task
from tp2d_data.tokens.tokenizer import BUILTIN_VOCABULARY, load_tokenizer

__version__ = version("tp2d-data")

__all__ = [
    "BUILTIN_VOCABULARY",
    "IGNORED",
    "Corpus",
    "DataSpec",
    "LastBatch",
    "Loader",
    "LossOn",
    "Mode",
    "Packing",
    "Records",
    "Sharding",
    "Source",
    "Statistics",
    "Stream",
    "Task",
    "TooFewRows",
    "__version__",
    "create_dataloader",
    "hub_reachable",
    "load_tokenizer",
    "order",
]
