"""The study of a sweep: Optuna, asked and told; where it is kept, who proposes, what is tried first."""
