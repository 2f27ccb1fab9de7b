"""Use of a trained model: its bundle, label maps, scores, and files for other programs."""
