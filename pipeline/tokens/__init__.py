"""The tokenizer, token tars, and the exact stream: text tars to batches."""
