"""The batches of one data parallel rank."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tp2d_data.ahead import Ahead
from tp2d_data.rows.collate import Picks, collate, document_ends
from tp2d_data.rows.packing import Packing
from tp2d_data.rows.rows import Statistics
from tp2d_data.sampling.sampler import Sampler
from tp2d_data.transfer import Arrays, Transfer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


class Loader:
    """Batches of one data parallel rank, made by `DataSpec.open` or `create_dataloader`; iterate it once per epoch.

    A batch is a dict of int64 tensors, each (batch_size_per_gpu, seq_length): `input_ids`, `labels` (not shifted;
    `IGNORED`, -100, where a token is not trained on), and `position_ids`, which begin at 0 with each document. With
    `respect_boundaries=False` there are no `position_ids`; with `packing="pad"` there is an `attention_mask` instead.
    A packed batch has an attribute `documents`: where they end, made on the host while the batch was.
    `len()` is the number of batches of a whole epoch; a stream has none.

    Attributes:
        sampler: has `set_epoch`.
        statistics: counts of documents, rows and tokens; None for a stream.
    """

    def __init__(
        self,
        *,
        sampler: Sampler[Any],
        packing: Packing,
        tokenizer: "PreTrainedTokenizerBase",
        statistics: Statistics | None,
        num_workers: int,
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
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._device = device

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Arrays]:
        # Not in the generator: the position is that of this call, not of the first batch.
        return self._batches(self.sampler.begin())

    def _batches(self, planned: Iterator[tuple[Any, Picks]]) -> Iterator[Arrays]:
        transfer = Transfer(self._device)

        def make(item: tuple[Any, Picks]) -> tuple[Arrays, Any]:
            batch = collate(item[1], packing=self.packing, pad_token_id=self.pad_token_id)
            return transfer.send(batch, ends=document_ends(batch))

        for (place, _), sent in Ahead(make, planned, depth=self._prefetch, workers=self._num_workers):
            yield self.sampler.hand_out(place, transfer.receive(sent))

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON, equal on every rank: `epoch`, and `samples` handed out in it so far over all ranks.

        Exact in the middle of an epoch: the batch handed out last counts as consumed. Batches that are prepared ahead
        do not count.
        """
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration continue with the sample after those counted in `state`.

        The state may come from another dp size and another batch size. `sampler.set_epoch` with the same epoch keeps
        the position. After a position at the end of its epoch the next iteration has no batches.

        Raises:
            ValueError: not a position, or one of other data.
        """
        self.sampler.load_state_dict(state)
