"""Scores of label maps and of class presence, all from counts that add up over batches and ranks.

What is loaded here is all that training needs; the modules beside `confusion` are for the final evaluation.
"""

from encsearch.metrics.confusion import Scores, confusion_matrix, scores

__all__ = ["Scores", "confusion_matrix", "scores"]
