"""Serve a model to other programs: as MLflow's pyfunc (pyfunc.py), and over HTTP by Ray Serve (app.py)."""
