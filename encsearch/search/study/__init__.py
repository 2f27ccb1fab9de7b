"""The study of a sweep in Optuna: its storage, its samplers, and the first points."""
