"""What both recipes of data_speed.py train on, and the loss of a finished run on the lines that neither has seen."""

from pathlib import Path
from typing import Any

import tutorial_recipe
from tp2d_train.runs.folder import RunFolder

HELD_OUT, VOCABULARY = 0.05, 4096
EVALUATED_TOKENS = 512  # of a held-out line, for every seq_length
SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8}


def prepare(root: Path, data: Path) -> None:
    """Makes `root`/train, `root`/held-out and `root`/model (configuration and tokenizer, no weights)."""
    from transformers import Qwen2Config, Qwen2Tokenizer

    lines = (data / "train.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    cut = round(len(lines) * (1 - HELD_OUT))
    for name, part in (("train", lines[:cut]), ("held-out", lines[cut:])):
        (root / name).mkdir()
        (root / name / "train.txt").write_text("".join(part), encoding="utf-8")
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(lines[:cut], VOCABULARY, show_progress=False)
    tokenizer.save_pretrained(root / "model")
    config = Qwen2Config(
        **SIZES,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
    )
    config.save_pretrained(root / "model")


def load_weights(root: Path, run: Path, *, engine: str, ours: bool) -> Any:
    """The model with the weights that a run saved last, whole in this process."""
    from tp2d_train.commands.export import export
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if ours:
        return AutoModelForCausalLM.from_pretrained(export(RunFolder(run)))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(root / "model"))
    tutorial_recipe.load_weights(run, model, engine=engine)
    return model


def evaluate(root: Path, model: Any) -> tuple[float, int]:
    """The mean loss over the predicted tokens of the held-out lines, and their number; one line at a time."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    lines = (root / "held-out" / "train.txt").read_text(encoding="utf-8").splitlines()
    rows = [torch.tensor([tokenizer(line)["input_ids"][:EVALUATED_TOKENS]]) for line in lines]
    rows = [row for row in rows if row.numel() > 1]
    tokens = sum(row.numel() - 1 for row in rows)
    with torch.inference_mode():
        model.eval()
        return sum(float(model(row, labels=row).loss) * (row.numel() - 1) for row in rows) / tokens, tokens
