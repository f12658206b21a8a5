"""Whether a model is causal as the engines call it: no logit may depend on a later token.

transformers maps types to causal language models that look ahead unless their configuration says otherwise (BERT
without `is_decoder`, for instance). Such a model sees the token it is to predict: it trains on with a fine loss, and
is useless. A type is trained only if `python benchmarks/causality.py` has shown it causal (`CAUSAL_FAMILIES`), or if a
tiny model of its very configuration is measured to be, here, before a worker starts.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from tp2d_mesh.model.families import CAUSAL_FAMILIES, CAUSAL_IF
from tp2d_mesh.model.packed import ModelBatch, forward_inputs

ROUNDING = 1e-6
"""Of the largest logit: a model in float64 has parts that always compute in float32; looking ahead shows above 1e-2."""
ALIVE = 1e-4
"""Of the largest logit: below it a change does not reach later tokens, and no verdict on earlier ones is possible."""

_AHEAD: dict[str, tuple[Any, ...]] = {"is_causal": (False,), "use_bidirectional_attention": (True, "all")}
_SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_STRANGERS = "transformers_modules."  # where transformers puts code that comes with a model, whatever its type says
_MAX_PARAMETERS = 20_000_000
_FIRST_TOKEN = 3  # below it are tokens that a model may treat apart: padding, begin, end


class Verdict(StrEnum):
    """What a measurement says."""

    CAUSAL = "causal"
    LOOKS_AHEAD = "looks ahead"
    UNDECIDED = "not decided"


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How far changed tokens reached in a row, each figure relative to the largest logit.

    Args:
        before: the largest change of any logit before a changed token.
        after: the largest change of any logit after one; without it nothing flows from token to token at all.
        noise: the largest change of any logit when nothing is changed.
    """

    before: float
    after: float
    noise: float

    @property
    def verdict(self) -> Verdict:
        """Causal if nothing but rounding reached an earlier logit while later ones did change."""
        if not (self.after > ALIVE and self.noise <= ROUNDING):  # of a model that gives NaN neither is true
            return Verdict.UNDECIDED
        return Verdict.CAUSAL if self.before <= ROUNDING else Verdict.LOOKS_AHEAD


@torch.no_grad()
def measure_reach(
    model: Any, *, vocab_size: int, length: int = 24, changed: Sequence[int] | None = None, seed: int = 0
) -> Reach:
    """Change one token of a row at a time and compare all logits, called exactly as the engines call the model.

    Args:
        model: a small transformers model on CPU, best in float64, without dropout or other noise.
        vocab_size: the row's tokens are drawn from 3 up to it.
        length: tokens of the row; more than what the model's windows, chunks or blocks hold.
        changed: places of the tokens that are changed, one after the other; None is every second, from 1 on.
        seed: of the tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    row = torch.randint(_FIRST_TOKEN, vocab_size, (1, length), generator=generator)
    logits = _logits(model, row)
    scale = logits.abs().max()
    before = after = 0.0
    noise = _largest(_logits(model, row) - logits, scale)
    for place in range(1, length, 2) if changed is None else changed:
        other = row.clone()
        other[0, place] = _FIRST_TOKEN + (row[0, place] - _FIRST_TOKEN + 1) % (vocab_size - _FIRST_TOKEN)
        change = _logits(model, other) - logits
        before = max(before, _largest(change[:, :place], scale))
        after = max(after, _largest(change[:, place + 1 :], scale))
    return Reach(before=before, after=after, noise=noise)


def _logits(model: Any, row: torch.Tensor) -> torch.Tensor:
    inputs = forward_inputs({"input_ids": row}, attention="sdpa")
    return ModelBatch(labels=row, inputs=inputs).logits(model)


def _largest(change: torch.Tensor, scale: torch.Tensor) -> float:
    """The largest change; infinite where one is not a number, so that no maximum leaves it out."""
    found = change.abs().max().div(scale).item() if change.numel() else 0.0
    return found if found == found else float("inf")


@torch.no_grad()
def stir(model: nn.Module, *, seed: int = 0) -> None:
    """Add noise of order one per unit to every parameter, so that no part of a new model is without effect.

    Args:
        model: with initialised weights; matrices get noise of variance 1 / last dim, vectors of 0.01.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.add_(noise, alpha=parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1)


def check_causal(model: Any) -> None:
    """Refuse a model that looks ahead, or that was not shown not to. Only an unknown type costs more than a look-up.

    Args:
        model: a transformers causal language model, on any device (meta is enough).

    Raises:
        ValueError: names the type or the setting, and the way out.
    """
    config = model.config
    family, text = config.model_type, _text(config)
    for name, values in _AHEAD.items():
        if getattr(text, name, None) in values:
            raise ValueError(
                f"the configuration of model type {family!r} has {name}={getattr(text, name)!r}, with which a logit "
                f"depends on later tokens: the model would see what it is to predict. Take that out of its config.json."
            )
    if type(model).__module__.startswith(_STRANGERS) or family not in {*CAUSAL_FAMILIES, *CAUSAL_IF}:
        _check_unknown(model)
    elif family in CAUSAL_IF:
        _check_settings(config)


def _check_settings(config: Any) -> None:
    """Refuse a type that looks ahead by default, unless its configuration has what was shown to make it causal."""
    needed = CAUSAL_IF[config.model_type]
    if needed and all(getattr(config, name, None) == value for name, value in needed.items()):
        return
    settings = ", ".join(f"{name}={value!r}" for name, value in needed.items())
    first = f"Set {settings} in its configuration (config.json), or " if needed else ""
    raise ValueError(
        f"model type {config.model_type!r} is not causal: a logit depends on later tokens, so the model would see what "
        f"it is to predict. {first or 'No setting is known that makes it so: '}take a causal model, llama or qwen2 for "
        f"example."
    )


def _check_unknown(model: Any) -> None:
    """Measure a tiny model of the same class and configuration; refuse what cannot be measured."""
    family = model.config.model_type
    try:
        reach = _measure_tiny(model)
    except Exception as error:  # a stranger's code, at sizes it may not expect: no error of it decides
        reason = f"a tiny model of it fails ({type(error).__name__}: {error})".splitlines()[0]
    else:
        if reach.verdict is Verdict.CAUSAL:
            return
        reason = f"on a tiny model of it the check says: {reach.verdict}"
        reason += f" (earlier logits change by {reach.before:.1e}, later ones by {reach.after:.1e})"
    raise ValueError(
        f"model type {family!r} has not been shown to be causal, that is without a logit that depends on later tokens; "
        f"{reason}. Take a model type that is known ({len(CAUSAL_FAMILIES)} are, llama or qwen2 for example); or, if "
        f"you know it to be causal, use the engine from Python with verified_only=False."
    )


def _measure_tiny(model: Any) -> Reach:
    """The same class, configuration and number of layers, with the sizes cut; on CPU in float64."""
    config = copy.deepcopy(model.config)
    if _text(config) is not config:
        raise ValueError("its configuration has parts of its own")
    own, default = config.to_dict(), type(config)().to_dict()
    changed = {name: value for name, value in own.items() if name not in default or default[name] != value}
    sizes = {name: value for name, value in _SIZES.items() if name in own}
    tiny = type(config)(**{**changed, **sizes})
    with torch.random.fork_rng(devices=[]):
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in type(model)(tiny).parameters())
        if count > _MAX_PARAMETERS:
            raise ValueError(f"it still has {count:,} parameters, more than {_MAX_PARAMETERS:,}")
        torch.manual_seed(0)
        small = type(model)(tiny).double().eval()
        small.config._experts_implementation = "eager"  # transformers' other kernels of experts do not take float64
        stir(small)
        return measure_reach(small, vocab_size=_text(tiny).vocab_size)


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
