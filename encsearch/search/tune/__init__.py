"""Jobs run by Ray Tune: the board between Tune and its users, the driver's side, the worker's side."""
