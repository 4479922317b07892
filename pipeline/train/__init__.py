"""One training loop for pretraining and fine-tuning, on DeepSpeed."""
