"""TREC, BEIR, JSONL and Parquet, in and out: for evaluation and jobs alike."""
