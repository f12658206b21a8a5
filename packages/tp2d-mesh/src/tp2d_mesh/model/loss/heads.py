"""How each family goes from its base model to its logits, as far as the loss can follow it in chunks.

A family enters the tables only after `python benchmarks/heads.py --sweep` has shown its logits equal to
`transform(output embedding(last hidden state of the base model))`, and every gradient of the loss in chunks equal to
that of whole logits. In the other families something lies between: a dense layer and a norm (BERT and its kin), a cut
of the vocabulary, several heads. They keep whole logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tp2d_mesh.model.loss.logits import LogitTransform

_PLAIN = """
    afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba bart bert-generation bigbird_pegasus biogpt bitnet
    blenderbot blenderbot-small bloom codegen cpmant ctrl cwm dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4
    diffllama doge dots1 dots3_note dots3_note_text emu3_text_model ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon
    falcon_mamba flex_olmo flint fuyu gemma gemma3 git glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt-sw3
    gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj helium hrm_text hunyuan_v1_dense hunyuan_v1_moe
    hy_v3 hy_v4 internlm3 iquestcoder jais2 jamba jetmoe kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4
    llama4_text longcat_flash mamba mamba2 marian mbart mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text
    ministral ministral3 mistral mixtral mllama_text_model moshi moss_transcribe_diarize mpt mvp nemotron nemotron_h
    olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt pegasus persimmon phi phi3 phi4_multimodal phimoe plbart qwen2
    qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp qwen4_exp_text
    rwkv seed_oss smollm3 solar_open stablelm starcoder2 trocr whisper xglm xlm xlnet youtu zamba zamba2 zaya
"""
_CAP, _TIMES, _OVER = "soft_cap", "times", "over"
_CHANGED: Mapping[str, tuple[str, str]] = {
    "beam": (_CAP, "final_logit_softcapping"),
    "cohere": (_TIMES, "logit_scale"),
    "cohere2": (_TIMES, "logit_scale"),
    "cohere2_moe": (_TIMES, "logit_scale"),
    "cohere_compass_text": (_TIMES, "logit_scale"),
    "falcon_h1": (_TIMES, "lm_head_multiplier"),
    "gemma2": (_CAP, "final_logit_softcapping"),
    "gemma3_text": (_CAP, "final_logit_softcapping"),
    "gemma3n_text": (_CAP, "final_logit_softcapping"),
    "gemma4": (_CAP, "final_logit_softcapping"),
    "gemma4_text": (_CAP, "final_logit_softcapping"),
    "gemma4_unified": (_CAP, "final_logit_softcapping"),
    "gemma4_unified_text": (_CAP, "final_logit_softcapping"),
    "granite": (_OVER, "logits_scaling"),
    "granite_swa": (_OVER, "logits_scaling"),
    "granitemoe": (_OVER, "logits_scaling"),
    "granitemoe_swa": (_OVER, "logits_scaling"),
    "granitemoehybrid": (_OVER, "logits_scaling"),
    "granitemoeshared": (_OVER, "logits_scaling"),
    "hyperclovax": (_TIMES, "logits_scaling"),
    "minicpm3": (_OVER, "logits_scaling"),
    "nanochat": (_CAP, "final_logit_softcapping"),
    "recurrent_gemma": (_CAP, "logits_soft_cap"),
    "vaultgemma": (_CAP, "final_logit_softcapping"),
    "xlstm": (_CAP, "output_logit_soft_cap"),
}
"""What a family does to its logits, and the name of the number in its text configuration; None there: nothing."""

HEAD_FAMILIES: frozenset[str] = frozenset(_PLAIN.split()) | _CHANGED.keys()
"""`config.model_type` of every family whose loss is computed in chunks."""

_BASES: Mapping[str, str] = {"llama4": "model", "llama4_text": "model", "mllama_text_model": "model"}
"""The base model's name where it is not the class's `base_model_prefix`."""
_OWN = "transformers.models."  # a subclass, and code that comes with a model, are elsewhere


@dataclass(frozen=True, kw_only=True)
class Head:
    """How a causal language model goes from its base model to its logits.

    Attributes:
        base: the name of the base model in the model; its output has `last_hidden_state`.
        output: the name of the output embedding in the model, an `nn.Linear`.
        transform: of the logits.
    """

    base: str
    output: str
    transform: LogitTransform


def head_of(model: Any) -> Head | None:
    """The head of a model whose loss can be computed in chunks; looks names up and computes nothing.

    Args:
        model: a causal language model, a skeleton on the meta device for instance, before anything is wrapped.

    Returns:
        None, for whole logits, where the family is not in `HEAD_FAMILIES`, where the model's class or its forward is
        not transformers' own, or where its output embedding is no plain `nn.Linear`.

    Raises:
        ValueError: the configuration's number for the logits is none that a `LogitTransform` takes.
    """
    family, output = model.config.model_type, model.get_output_embeddings()
    if family not in HEAD_FAMILIES or not (_own_forward(model) and type(output) is nn.Linear and _unchanged(output)):
        return None
    base = _BASES.get(family, model.base_model_prefix)
    if not isinstance(getattr(model, base, None), nn.Module):
        return None
    name = next(name for name, module in model.named_modules() if module is output)
    return Head(base=base, output=name, transform=transform_of(model.config))


def transform_of(config: Any) -> LogitTransform:
    """What a model of `HEAD_FAMILIES` with this transformers configuration does to its logits.

    Raises:
        ValueError: the configuration's number is none that a `LogitTransform` takes.
    """
    kind, name = _CHANGED.get(config.model_type, (_TIMES, ""))
    number = getattr(config.get_text_config(), name, None) if name else None
    if number is None:
        return LogitTransform()
    if kind == _CAP:
        return LogitTransform(soft_cap=number)
    return LogitTransform(scale=number if kind == _TIMES else 1 / number)


def _own_forward(model: Any) -> bool:
    """Whether the class is one of transformers' and computes with its own forward."""
    kind = type(model)
    module = kind.__module__
    return module.startswith(_OWN) and kind.forward.__module__ == module and _unchanged(model)


def _unchanged(module: nn.Module) -> bool:
    """Whether no forward, and no hook around it, was put onto this very module."""
    return "forward" not in vars(module) and not module._forward_hooks and not module._forward_pre_hooks
