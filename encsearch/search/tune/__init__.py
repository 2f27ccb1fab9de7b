"""Ray Tune runs jobs: the seam, the driver's side, the worker's side."""
