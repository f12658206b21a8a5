"""The place in an epoch: one `Sampler`, whatever the rows are.

What the rows are and in which order they come is a `Plan`: `Mixture` for corpora of known size, `Streams` for corpora
that are read block by block. Either way a position counts samples of the whole job and no rank's own, so a run
continues with the very next sample on another number of ranks.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from tp2d_data.rows.collate import Picks
from tp2d_data.values import require_at_least, require_integer

Place = TypeVar("Place")
Item = TypeVar("Item")


class Plan(Protocol[Place]):
    """Which rows come when. A place says how far an epoch has gone; only the plan knows what is in it."""

    def beginning(self) -> Place:
        """The place before an epoch's first sample."""

    def batches(self, begin: Place, epoch: int) -> Iterator[tuple[Place, Picks]]:
        """This rank's batches of `epoch` from `begin` on, each with the place after it."""

    def to_json(self, place: Place) -> dict[str, Any]:
        """`place` as JSON; the keys are always the same."""

    def from_json(self, saved: Mapping[str, Any]) -> Place:
        """The place that `to_json` wrote; ValueError where it cannot be one."""

    def __len__(self) -> int:
        """Batches of a whole epoch; TypeError where nobody knows."""


class Sampler(Generic[Place]):
    """Goes through the batches of a plan, epoch by epoch, and knows where it is.

    Iterating starts at the beginning of the epoch, or once at the loaded position. One iterator at a time.

    Args:
        plan: which rows come when.
        data: a name of the rows, so that a position is not used on others; "" leaves that check out.

    Attributes:
        epoch: the one that the next iteration goes through.
    """

    def __init__(self, plan: Plan[Place], *, data: str = "") -> None:
        self.epoch = 0
        self._plan = plan
        self._data = data
        self._place = self._start = plan.beginning()  # after the batch handed out last; where the next iteration begins

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank; TypeError for a stream."""
        return len(self._plan)

    def __iter__(self) -> Iterator[Picks]:
        planned = self.begin()
        return (self.hand_out(place, picks) for place, picks in planned)

    def begin(self) -> Iterator[tuple[Place, Picks]]:
        """The batches of an iteration that begins now, each with the place after it, for `hand_out`."""
        self._place, self._start = self._start, self._plan.beginning()
        return self._plan.batches(self._place, self.epoch)

    def hand_out(self, place: Place, batch: Item) -> Item:
        """Returns `batch` and moves the position behind it.

        A checkpoint taken while the caller works on this batch counts it as consumed.
        """
        self._place = place
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration: another one starts at its beginning, the same one keeps its place.

        Raises:
            ValueError: `epoch` is not a whole number of at least 0.
        """
        epoch = require_integer("epoch", epoch)
        require_at_least("epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch = epoch
            self._place = self._start = self._plan.beginning()

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON, the same on every rank: `epoch`, `samples` of it handed out over all ranks, `data`."""
        return {"epoch": self.epoch, **self._plan.to_json(self._place), "data": self._data}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration begin at a position that any rank of a job of any dp size has saved.

        Raises:
            ValueError: it is not a position, belongs to other data, or lies behind the last row.
        """
        keys = list(self.state_dict())
        if set(state) != set(keys):
            raise ValueError(f"a data position has the keys {', '.join(keys)}; this one has {sorted(state)}")
        _require_same_data(state["data"], self._data)
        epoch = require_integer("epoch", state["epoch"])
        require_at_least("epoch", epoch, 0)
        self._place = self._start = self._plan.from_json(state)
        self.epoch = epoch


def _require_same_data(saved: str, present: str) -> None:
    if saved != present:
        raise ValueError(
            f"the data position belongs to other rows ({saved}, here {present}): the files, the tokenizer, the seed or "
            "a setting of the data has changed since; give the same ones, or begin a new run"
        )
