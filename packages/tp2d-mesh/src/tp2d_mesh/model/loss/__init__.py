"""The loss of tokens, from whole logits or with the head in chunks."""
