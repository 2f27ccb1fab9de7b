"""A model that answers others: as MLflow's pyfunc (pyfunc.py), and over HTTP by Ray Serve (app.py)."""
