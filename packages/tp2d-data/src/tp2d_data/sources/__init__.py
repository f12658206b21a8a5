"""The documents: of local files, of the Hugging Face hub or the built-in corpus, and which share of them is read."""
