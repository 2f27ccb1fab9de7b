"""The report of a sweep: one HTML page that needs no other file, and its figures as PNG beside it.

summary.py is what `sweep.json` holds. facts.py, charts/axes.py and the data of each figure are pure; words.py
says them, the figures draw them, page.py writes the page.
"""

from encsearch.report.page import render
from encsearch.report.summary import FinalistRow, SweepSummary, from_json, to_json

__all__ = [
    "FinalistRow",
    "SweepSummary",
    "from_json",
    "render",
    "to_json",
]
