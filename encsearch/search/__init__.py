"""The sweep: Optuna proposes and remembers, Ray Tune runs, the finalists are confirmed."""
