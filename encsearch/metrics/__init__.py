"""Scores of label maps and of class presence, all from counts that add up over batches and ranks.

Training needs only the names loaded here; the other modules are for the final evaluation.
"""

from encsearch.metrics.confusion import Scores, confusion_matrix, scores

__all__ = ["Scores", "confusion_matrix", "scores"]
