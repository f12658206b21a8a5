"""From records to tokens and loss masks, cached on disk."""
