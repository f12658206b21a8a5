"""The batches of one data parallel rank."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tp2d_data.ahead import ahead
from tp2d_data.collate import Picks, collate
from tp2d_data.mixture import Mixture
from tp2d_data.packing import Packing
from tp2d_data.rows import Statistics
from tp2d_data.sampler import Sampler
from tp2d_data.stream import StreamSampler
from tp2d_data.transfer import Transfer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class Feed(Protocol):
    """Which rows come when; `mark` is the position after a batch."""

    def begin(self) -> Any: ...
    def planned(self, begin: Any) -> Iterator[tuple[Any, Picks]]: ...
    def hand_out(self, mark: Any, batch: Any) -> Any: ...


class MixtureFeed:
    """The rows of corpora of known size, in a sampler's order."""

    def __init__(self, sampler: Sampler, mixture: Mixture) -> None:
        self._sampler = sampler
        self._mixture = mixture
        self.begin, self.hand_out = sampler.begin, sampler.hand_out

    def planned(self, begin: int) -> Iterator[tuple[int, Picks]]:
        epoch = self._sampler.epoch
        for mark, numbers in self._sampler.planned(begin):
            yield mark, self._mixture.pick(numbers, epoch)


class Loader:
    """Batches of one data parallel rank, made by `create_dataloader`; iterate it once per epoch.

    A batch is a dict of int64 tensors, each (batch_size_per_gpu, seq_length): `input_ids`, `labels` (not shifted, -100
    where nothing is to be learnt), and `position_ids`, which begin at 0 with each document; without respected
    boundaries these are left out, and with `packing="pad"` there is an `attention_mask` instead. `len()` is the number
    of batches of a whole epoch; a stream has none.

    Attributes:
        sampler: has `set_epoch`.
        statistics: what became of the documents; None for a stream.
    """

    def __init__(
        self,
        *,
        sampler: Sampler | StreamSampler,
        feed: Feed,
        packing: Packing,
        tokenizer: "PreTrainedTokenizerBase",
        statistics: Statistics | None,
        workers: int,
        prefetch: int,
        device: "torch.device | str | None",
    ) -> None:
        self.sampler = sampler
        self.packing = packing
        self.seq_length = packing.seq_length
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer)
        self.pad_token_id = tokenizer.pad_token_id
        self.statistics = statistics
        self._feed = feed
        self._ahead = partial(ahead, depth=prefetch, workers=workers)
        self._device = device

    def __len__(self) -> int:
        if isinstance(self.sampler, StreamSampler):
            raise TypeError("a stream has no length: nobody has counted its rows")
        return len(self.sampler)

    def __iter__(self) -> Iterator[dict[str, "torch.Tensor"]]:
        # Not in a generator: the position begins when the iteration does, and not with its first batch.
        return self._batches(self._feed.planned(self._feed.begin()))

    def _batches(self, planned: Iterator[tuple[Any, Picks]]) -> Iterator[dict[str, "torch.Tensor"]]:
        transfer = Transfer(self._device)

        def make(item: tuple[Any, Picks]) -> Any:
            return transfer.send(collate(item[1], packing=self.packing, pad_token_id=self.pad_token_id))

        for (mark, _), sent in self._ahead(make, planned):
            yield self._feed.hand_out(mark, transfer.receive(sent))

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON, equal on every rank: `epoch`, and `samples` handed out in it so far over all ranks.

        Exact in the middle of an epoch: the batch handed out last counts as consumed, and nothing after it, whatever
        was prepared ahead.
        """
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on with the sample after those counted in `state`.

        The state may come from another dp size and another batch size; `sampler.set_epoch` with the same epoch
        keeps the position. A position at the end of its epoch leaves an iteration without batches.

        Raises:
            ValueError: not a position, or one of other data.
        """
        self.sampler.load_state_dict(state)
