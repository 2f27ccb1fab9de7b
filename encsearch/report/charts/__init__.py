"""The charts of a report: one file for each chart, or for a few that share their data."""
