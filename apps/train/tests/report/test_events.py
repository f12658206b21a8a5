"""What each kind of event says, and at which level."""

import pytest
from tp2d_train.config import LOG_LEVELS
from tp2d_train.report.events import LEVELS, describe

AT = {"step": 40, "epoch": 0, "total_steps": 400}
STEP = {"event": "step", **AT, "loss": 5.1234, "grad_norm": 1.0234, "lr": 3e-3, "eta_seconds": 35.2}
RATES = {"tokens_per_second": 12345.6, "label_tokens_per_second": 12000.0}
EVALUATED = {"event": "evaluated", **AT, "eval_loss": 5.6571, "eval_tokens": 7954}
STARTED = {"engine": "fsdp2", "mesh": "2x2 (dp x tp)", "device": "cpu", "precision": "fp32", "parameters": 1312896}
FAILED = {"event": "failed", "rank": 2, "host": "a", "error": "ValueError", "message": "no", "traceback": "Traceback"}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({**STEP, **RATES}, "loss 5.123  grad 1.02  lr 3.0e-03  12,346 tok/s  ETA 0:35"),
        (
            {**STEP, **RATES, "label_tokens_per_second": 1204.0},
            "loss 5.123  grad 1.02  lr 3.0e-03  12,346 tok/s (1,204 labels/s)  ETA 0:35",
        ),
        ({**STEP, "loss": None, "eta_seconds": 4000}, "loss not finite  grad 1.02  lr 3.0e-03  ETA 1:06:40"),
        (EVALUATED, "eval loss 5.657 over 7,954 tokens"),
        ({**EVALUATED, "eval_perplexity": 286.34}, "eval loss 5.657 (perplexity 286.3) over 7,954 tokens"),
        ({**EVALUATED, "eval_perplexity": 9897.1}, "eval loss 5.657 (perplexity 9,897.1) over 7,954 tokens"),
        ({**EVALUATED, "eval_perplexity": 1.24e43}, "eval loss 5.657 (perplexity 1.2e+43) over 7,954 tokens"),
        (
            {"event": "saved", **AT, "checkpoint": "step-00000040-ab", "seconds": 0.42},
            "saved step-00000040-ab in 0.4 s",
        ),
        ({"event": "epoch", **AT, "num_epochs": 3, "loss": 5.5}, "epoch 1/3 ended, mean loss 5.500"),
        ({"event": "resumed", **AT, "checkpoint": "step-00000040-ab"}, "resumed from step-00000040-ab"),
        ({"event": "prolonged", **AT, "before": 200}, "the schedule now ends at step 400, it ended at 200"),
        ({"event": "warning", **AT, "message": "no step"}, "warning: no step"),
        ({"event": "skipped", **AT, "message": "not finite"}, "warning: not finite"),
        ({"event": "spike", **AT, "message": "a spike"}, "warning: a spike"),
        ({"event": "stopped", **AT}, "stopped as asked; the next start with this name resumes here"),
        ({"event": "finished", **AT, "seconds": 61.0, "tokens": 7379}, "finished in 1:01, 7,379 tokens"),
    ],
)
def test_every_kind_of_event_is_one_line(event: dict, line: str) -> None:
    assert describe(event) == f"step 40/400  {line}"


def test_an_event_without_a_place_is_its_message_and_one_with_a_step_alone_says_it() -> None:
    assert describe({"event": "phase", "message": "starting 4 workers"}) == "starting 4 workers"
    assert describe({"event": "data", "message": "12 rows"}) == "12 rows"
    assert describe({"event": "warning", "message": "few rows"}) == "warning: few rows"
    assert describe({"event": "skipped", "step": 12, "message": "not finite"}) == "step 12  warning: not finite"


def test_a_start_says_what_trains_where() -> None:
    line = describe({"event": "started", **AT, "step": 0, **STARTED, "places": "dp 0: rank 0 on a, rank 1 on a"})
    assert line == (
        "dp 0: rank 0 on a, rank 1 on a\nfsdp2 on 2x2 (dp x tp), cpu, fp32: 1,312,896 parameters, 400 steps to go"
    )


def test_an_unknown_kind_has_no_line() -> None:
    """A driver may be older than its workers."""
    assert describe({"event": "of the future"}, log_level="debug") is None


def shown(log_level: str) -> set[str]:
    """The kinds that `log_level` shows, each event with every value that any kind reads."""
    values = {**STEP, **EVALUATED, **STARTED, **FAILED, "places": "", "checkpoint": "a", "seconds": 1.0, "before": 1}
    values |= {"num_epochs": 1, "tokens": 1}
    return {kind for kind in LEVELS if describe({**values, "event": kind}, log_level=log_level) is not None}


def test_a_level_shows_what_is_as_important() -> None:
    assert shown("debug") == shown("info") == set(LEVELS)
    assert shown("warning") == {"warning", "skipped", "spike", "failed", "stopped", "finished"}
    assert shown("error") == {"failed"}
    assert set(LEVELS.values()) <= set(LOG_LEVELS)


def test_a_traceback_is_shown_at_debug_alone() -> None:
    assert describe(FAILED) == "rank 2 on a failed: ValueError: no"
    assert describe(FAILED, log_level="debug") == "rank 2 on a failed: ValueError: no\nTraceback"
