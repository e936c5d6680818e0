"""Data sets, tokenizer, batching, and one data module per kind of input."""
