"""The report of a sweep: one HTML page that needs no other file, and its figures as PNG beside it.

summary.py is what `sweep.json` holds. facts.py computes from it, words.py and verdict.py make sentences,
charts/ draws, page.py writes the page. ablation.py is the report of an ablation.
"""
