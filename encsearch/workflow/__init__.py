"""The jobs from start to end, each recorded in MLflow: train, sweep, ablate, promote.

Every job gets a folder of its own:

    run.json      what it was and what came of it
    config.yaml   the resolved recipe
    artifacts/    what is uploaded to MLflow: per-class table, confusion matrix, panels, the model's bundle;
                  of a sweep the HTML report
    sweep.json    what the report is written from
"""
