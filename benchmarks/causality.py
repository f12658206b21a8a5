"""Whether a logit depends on later tokens, for every type that transformers calls a causal language model.

    python benchmarks/causality.py                    # every type, in 5 minutes; writes the table of results
    python benchmarks/causality.py --type bert xlm    # some types, printed only

A tiny model of each type, in float64 where that runs and else in float32, with noise added to every parameter, is
called as the engines call it. One token of a row changes at a time. A type is causal if no logit before the changed
token changes by more than rounding (1e-6 of the largest logit) while later ones do change by more than 1e-4. It is
checked with eager attention and sdpa, in training mode (with every dropout at 0) and in evaluation mode, in its default
configuration, with six layers, with windows, chunks and blocks shorter than the row, and on a row of 150 tokens. A type
that looks ahead is checked again with the settings that may make it causal. `CAUSAL_FAMILIES` and `CAUSAL_IF` are the
causal rows. Exits with 1 if they differ from what is found.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, swept, table, versions, write_result
from parity import first_line
from parity_packed import reaches, supports, time_limit, without_noise
from tiny_sizes import default_config, tiny_sizes
from tp2d_mesh import CAUSAL_FAMILIES, CAUSAL_IF, VERIFIED_FAMILIES
from tp2d_mesh.model.causality import Reach, Verdict, measure_reach, stir
from tp2d_mesh.model.packed import PACKED_FAMILIES
from tp2d_mesh.testing.parity import TINY

LIMIT = 200_000_000  # parameters
SECONDS = 60  # for a type in one configuration
LONG, LONG_PLACES = 150, (1, 40, 63, 64, 70, 127, 128, 140)  # around the chunks of 64 and 128 in some types' code
MADE_CAUSAL: tuple[dict[str, Any], ...] = (
    {"is_decoder": True},
    {"is_decoder": True, "attention_type": "original_full"},
    {"causal": True},
    {"attn_type": "uni"},
)
"""Settings that may make a type causal, tried in this order."""
SHORT = {
    "chunk_size": 4,
    "mamba_chunk_size": 4,
    "block_size": 4,
    "window_size": 4,
    "index_topk": 4,
    "keep_window_size": 4,
    "index_block_size": 4,
    "index_topk_blocks": 1,
}
"""Lengths and counts that the rows must exceed."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A verdict on one type in one configuration, and what it rests on."""

    verdict: Verdict
    detail: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A type as it comes, and the settings that were shown to make it causal, where it is not."""

    family: str
    default: Found
    settings: Mapping[str, Any] | None = None

    @property
    def cells(self) -> tuple[str, str, str]:
        made = "" if self.settings is None else ", ".join(f"`{k}={v!r}`" for k, v in self.settings.items())
        return self.family, f"{mark(self.default.verdict)} {self.default.detail}".strip(), made


def mark(verdict: Verdict) -> str:
    return verdict if verdict is Verdict.CAUSAL else f"**{verdict}**"


def judge(family: str) -> Row:
    """The verdict on one type; in a process of its own."""
    from transformers import logging

    torch.set_num_threads(1)
    logging.set_verbosity(logging.CRITICAL)
    default = verdict(family, {})
    if default.verdict is Verdict.CAUSAL:
        return Row(family=family, default=default)
    for settings in MADE_CAUSAL:
        if has_fields(family, settings) and verdict(family, settings).verdict is Verdict.CAUSAL:
            return Row(family=family, default=default, settings=settings)
    return Row(family=family, default=default)


def verdict(family: str, settings: Mapping[str, Any]) -> Found:
    """The worst of all that was measured of a type with these settings."""
    reasons = []
    for dtype, sizes in product((torch.float64, torch.float32), tiny_sizes(family)):
        try:
            with time_limit(SECONDS):
                found = measured(family, {**sizes, **settings, "dtype": dtype})
        except Exception as error:  # one verdict of many: whatever keeps a tiny model of the type from running
            reasons.append(first_line(error))
            continue
        return worst(found)
    return Found(verdict=Verdict.UNDECIDED, detail=f"no tiny model runs: {reasons[0]}")


def worst(found: Sequence[Reach]) -> Found:
    for verdict in (Verdict.UNDECIDED, Verdict.LOOKS_AHEAD):
        for reach in found:
            if reach.verdict is verdict:
                numbers = f"(before {reach.before:.0e}, after {reach.after:.0e}, noise {reach.noise:.0e})"
                return Found(verdict=verdict, detail=numbers)
    before, after = max(r.before for r in found), min(r.after for r in found)
    return Found(verdict=Verdict.CAUSAL, detail=f"{before:.0e} of at least {after:.0e}, {len(found)} times")


def has_fields(family: str, settings: Mapping[str, Any]) -> bool:
    config = default_config(family)
    return config is not None and all(hasattr(config, name) for name in settings)


def measured(family: str, settings: Mapping[str, Any]) -> list[Reach]:
    """Every configuration, attention and mode; a variant that cannot be built is left out, the first must run."""
    found = list(reaches_of(family, settings))
    config = built(family, settings, "eager").config
    long = {"max_position_embeddings": 256} if hasattr(config, "max_position_embeddings") else {}
    variants = [{"num_hidden_layers": 6, "layer_types": None}, *reaches(config)]
    variants += [{name: value} for name, value in SHORT.items() if hasattr(config, name)]
    for variant in variants:
        found += attempt(family, {**settings, **variant})
    return found + attempt(family, {**settings, **long}, length=LONG, changed=LONG_PLACES)


def attempt(family: str, settings: Mapping[str, Any], **row: Any) -> list[Reach]:
    try:
        return list(reaches_of(family, settings, **row))
    except TimeoutError:
        raise
    except Exception:  # a variant whose values this type's configuration does not take together
        return []


def reaches_of(family: str, settings: Mapping[str, Any], **row: Any) -> Iterator[Reach]:
    for attention in ("eager", "sdpa"):
        model = built(family, settings, attention)
        if not supports(model, attention):
            continue
        for training in (False, True):
            yield measure_reach(model.train(training), vocab_size=TINY["vocab_size"], **row)


def built(family: str, settings: Mapping[str, Any], attention: str) -> Any:
    """A tiny model without noise, its weights stirred.

    Raises:
        ValueError: it is not tiny.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **settings)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LIMIT:
        raise ValueError(f"{size:,} parameters at the tiny sizes")
    torch.manual_seed(0)
    model = without_noise(AutoModelForCausalLM.from_config(config, dtype=config.dtype))
    model.config._attn_implementation = attention
    stir(model)
    return model


def disagreements(rows: Sequence[Row]) -> Iterator[str]:
    """Where the tables of the package say otherwise."""
    for row in rows:
        causal, family = row.default.verdict is Verdict.CAUSAL, row.family
        if causal != (family in CAUSAL_FAMILIES):
            listed = "" if family in CAUSAL_FAMILIES else "not "
            yield f"{family} is {row.default.verdict}, and {listed}in CAUSAL_FAMILIES"
        ahead = row.settings is not None or row.default.verdict is Verdict.LOOKS_AHEAD
        if ahead != (family in CAUSAL_IF) or dict(CAUSAL_IF.get(family, {})) != dict(row.settings or {}):
            yield f"{family} needs {row.settings}, and CAUSAL_IF has {CAUSAL_IF.get(family)}"


def page(rows: Sequence[Row]) -> Iterator[str]:
    counts = [sum(row.default.verdict is verdict for row in rows) for verdict in Verdict]
    made = sum(row.settings is not None for row in rows)
    named = ", ".join(f"{name} {number}" for name, number in versions("torch", "transformers").items())
    yield from (
        "# Which causal language models are causal",
        "",
        f"`python benchmarks/causality.py`, {named}. Of {len(rows)} types {counts[0]} are causal as they come, "
        f"{counts[1]} look ahead and {counts[2]} are not decided; {made} of these are causal with a setting. Every "
        "other type is refused by name, unless a tiny model of a user's configuration is measured to be causal.",
        "",
        "The numbers are changes of logits relative to the largest: before a changed token and after it, the worst of "
        "all configurations, attentions and modes.",
        "",
    )
    yield from table("model type | as it comes | causal with", (row.cells for row in rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", nargs="+", metavar="TYPE", help="these types only; nothing is written")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "causality.md")
    arguments = parser.parse_args()
    rows = swept(judge, arguments.type or (), processes=arguments.processes)
    if arguments.type is None:
        write_result(arguments.output, page(rows))
    wrong = list(disagreements(rows))
    unchecked = sorted((VERIFIED_FAMILIES | PACKED_FAMILIES) - CAUSAL_FAMILIES)
    print("\n".join([*wrong, *(f"{family} is in another table and not in CAUSAL_FAMILIES" for family in unchecked)]))
    return 1 if wrong or unchecked else 0


if __name__ == "__main__":
    sys.exit(main())
