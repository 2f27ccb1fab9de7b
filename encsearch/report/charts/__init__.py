"""The figures of a report: one file a figure, or a few that share their data."""
