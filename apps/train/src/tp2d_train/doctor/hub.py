"""Whether the Hugging Face hub answers; a run with local data and models does without."""

from collections.abc import Iterator

from tp2d_data import hub_reachable

from tp2d_train.doctor.finding import Finding, Level

KNOWN = "openai-community/gpt2"  # any name will do: a refusal is an answer


def check_hub() -> Iterator[Finding]:
    """Asks once, for 3 seconds at most; with `HF_HUB_OFFLINE=1` not at all."""
    from huggingface_hub import constants

    try:
        reachable = hub_reachable(KNOWN, kind="model")
    except ValueError:  # it knows no such name, or wants a login: it is there
        reachable = True
    if reachable:
        yield Finding(check="hub", text=f"{constants.ENDPOINT} answers")
        return
    text = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
    mend = "models and datasets must be local folders, builtin: names, or in the hub's cache"
    yield Finding(level=Level.WARNING, check="hub", text=text, mend=mend)
