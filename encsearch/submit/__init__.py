"""Run a command as a job on a Ray cluster."""
