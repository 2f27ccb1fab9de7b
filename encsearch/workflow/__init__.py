"""The jobs from start to end, each recorded in MLflow: train, sweep, ablate, promote.

Every job gets a folder of its own:

    run.json      the kind of job and its result
    config.yaml   the resolved recipe
    artifacts/    the files uploaded to MLflow: per-class table, confusion matrix, panels, the model's bundle;
                  for a sweep also the HTML report
    sweep.json    the data of a sweep's report
"""
