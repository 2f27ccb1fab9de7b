"""Data sets: their interface, the Parquet store that holds them, and the batches made from them."""
