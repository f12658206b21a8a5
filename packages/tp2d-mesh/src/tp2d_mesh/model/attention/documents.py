"""Where the documents of packed rows end, as the loader hands it out or as the positions tell it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F


class DocumentEnds(Protocol):
    """What a batch may carry as its attribute `documents`; `tp2d_data`'s batches do.

    Attributes:
        ends: `(documents + 1,)` int32 on the batch's device: where each document ends in the rows laid end to end,
            from 0 on. A row's padding counts as one more.
        longest: tokens of the longest document, known on the host.
        tokens: of all rows, padding counted; known on the host.
    """

    @property
    def ends(self) -> torch.Tensor: ...
    @property
    def longest(self) -> int: ...
    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Found in positions; see `DocumentEnds`."""

    ends: torch.Tensor
    longest: int
    tokens: int


def find_documents(batch: Mapping[str, torch.Tensor]) -> DocumentEnds:
    """The documents of a packed batch: those it carries, else found in its `position_ids`.

    Looking for them waits for the device where the batch is already there.

    Args:
        batch: `(batch, seq)` int64 `position_ids` that restart at 0 with each document; maybe with an attribute
            `documents`, see `DocumentEnds`.

    Raises:
        ValueError: the ends are those of a batch of another size.
    """
    positions = batch["position_ids"]
    carried: DocumentEnds | None = getattr(batch, "documents", None)
    if carried is None:
        return documents_of(positions)
    if carried.tokens != positions.numel():
        raise ValueError(
            f"the batch carries the documents' ends of {carried.tokens} tokens and has position_ids of "
            f"{positions.numel()}: make a plain dict of a batch whose rows you cut, so that its ends are found anew."
        )
    return carried


def documents_of(positions: torch.Tensor) -> Documents:
    """The documents that `(batch, seq)` positions tell apart: one begins with each row and where no count goes on."""
    follows = positions[:, 1:] == positions[:, :-1] + 1
    starts = (~F.pad(follows, (1, 0), value=False)).flatten().nonzero()[:, 0]
    ends = F.pad(starts, (0, 1), value=positions.numel())
    return Documents(ends=ends.to(torch.int32), longest=int(ends.diff().max()), tokens=positions.numel())
