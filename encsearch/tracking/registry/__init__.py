"""Models in the MLflow registry: the promotion gate, the log of decisions, versions and aliases."""
