"""What differs between runs comes first and is marked; of one run, what was set."""

from pathlib import Path

from tp2d_train.config import option_fields
from tp2d_train.page.settings import ALWAYS, settings_of
from tp2d_train.runs.stored import PLACE

from apps.train.tests.page.written import facts, new_run


def test_of_one_run_comes_first_what_was_set(tmp_path: Path) -> None:
    run, _ = new_run(tmp_path, seed=7, seq_length=32, tp_size=2, dp_size=3)
    found = settings_of([facts(run)])
    assert found is not None
    first = {setting.name: setting.values for setting in found.first}
    assert first.keys() == {*ALWAYS, "seed"}, "defaults that belong to the built-in model are defaults"
    assert first["seed"] == ["7"] and first["dp_size"] == ["3"]


def test_every_option_stands_there_once(tmp_path: Path) -> None:
    found = settings_of([facts(new_run(tmp_path)[0])])
    assert found is not None
    names = [setting.name for setting in found.first] + [row.name for _, rows in found.rest for row in rows]
    assert sorted(names) == sorted(field.name for field in option_fields() if field.name not in PLACE)


def test_what_differs_is_marked_and_first(tmp_path: Path) -> None:
    runs = [new_run(tmp_path, name, seed=7, engine=engine)[0] for name, engine in (("a", "fsdp2"), ("b", "autotp"))]
    found = settings_of([facts(run) for run in runs])
    assert found is not None
    assert [setting.name for setting in found.first if setting.differs] == ["engine"] == [found.first[0].name]
    assert found.first[0].values == ["fsdp2", "autotp"]
    assert "seed" not in {setting.name for setting in found.first}, "set, and alike in both"


def test_a_damaged_configuration_leaves_a_gap(tmp_path: Path) -> None:
    run, broken = (new_run(tmp_path, name)[0] for name in "ab")
    broken.folder.config.write_text("a: [")
    found = settings_of([facts(run), facts(broken)])
    assert found is not None and not any(setting.differs for setting in found.first)
    assert found.first[0].values[1] is None
    assert settings_of([facts(broken)]) is None
