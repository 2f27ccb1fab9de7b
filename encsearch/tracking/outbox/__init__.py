"""What a job records, and the process that forwards it to MLflow exactly once."""
