"""Data sets: what one is, the Parquet store that holds it, and the batches made of it."""
