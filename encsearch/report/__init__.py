"""The report of a sweep: one HTML page that needs no other file, and its figures as PNG beside it.

summary.py holds the content of `sweep.json`. facts.py computes from it, words.py and verdict.py write
sentences, charts/ draws, page.py writes the page. ablation.py writes the report of an ablation.
"""
