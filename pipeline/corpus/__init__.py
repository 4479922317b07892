"""Sources, cleaning, deduplication, and the shard stage: raw corpora to text tars."""
