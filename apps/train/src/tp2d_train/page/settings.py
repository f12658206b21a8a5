"""The configuration of runs beside one another: what is worth seeing first, and the rest under its headings."""

from collections.abc import Sequence
from dataclasses import Field, dataclass

from tp2d_train.config import TrainConfig
from tp2d_train.fields import text_of
from tp2d_train.options import option_groups
from tp2d_train.page.facts import Facts
from tp2d_train.runs.stored import PLACE

ALWAYS = ("model_name", "dataset_name", "engine", "tp_size", "dp_size", "global_batch_size", "seq_length")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """An option and its value in every run.

    Args:
        name: of the option.
        help: what it is.
        values: as on the command line, in the order of the runs; None: the run's configuration is damaged.
        differs: whether the runs have it unlike.
        is_usual: whether every run has its default.
    """

    name: str
    help: str
    values: Sequence[str | None]
    differs: bool
    is_usual: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All options, each once.

    Args:
        first: those that differ between the runs, or that somebody has set.
        rest: the others, by their heading.
    """

    first: Sequence[Setting]
    rest: Sequence[tuple[str, Sequence[Setting]]]


def settings_of(runs: Sequence[Facts]) -> Settings | None:
    """The configuration of the runs; None where none can be read.

    Of several runs those come first that differ, of one those that are not at their default; and in either case what
    says which run it is: `ALWAYS`.
    """
    known = [(run.config, _plain(run.config)) for run in runs if run.config is not None]
    if not known:
        return None
    configs = [run.config for run in runs]
    first: list[Setting] = []
    rest: list[tuple[str, list[Setting]]] = []
    for heading, fields in option_groups().items():
        found = [_setting(field, configs, known) for field in fields if field.name not in PLACE]
        early = [setting for setting in found if _is_early(setting, several=len(runs) > 1)]
        first += early
        if late := [setting for setting in found if setting not in early]:
            rest.append((heading, late))
    return Settings(first=sorted(first, key=lambda setting: not setting.differs), rest=rest)


def _is_early(setting: Setting, *, several: bool) -> bool:
    return setting.name in ALWAYS or (setting.differs if several else not setting.is_usual)


def _plain(config: TrainConfig) -> TrainConfig:
    """The defaults for a run's model and data."""
    return TrainConfig(model_name=config.model_name, dataset_name=config.dataset_name)


def _setting(
    field: Field, configs: Sequence[TrainConfig | None], known: Sequence[tuple[TrainConfig, TrainConfig]]
) -> Setting:
    """`known` has the configurations that can be read, each with the defaults for its model and data."""
    values = [None if config is None else text_of(getattr(config, field.name)) for config in configs]
    return Setting(
        name=field.name,
        help=field.metadata["help"],
        values=values,
        differs=len({value for value in values if value is not None}) > 1,
        is_usual=all(_is_usual(field, config, plain) for config, plain in known),
    )


def _is_usual(field: Field, config: TrainConfig, plain: TrainConfig) -> bool:
    """Whether a field has the default of its model and data, or follows from others."""
    follows = field.metadata.get("derived") and "builtin" not in field.metadata
    return bool(follows) or getattr(config, field.name) == getattr(plain, field.name)
