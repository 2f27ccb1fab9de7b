"""A trained model in use: the bundle that holds it, label maps, scores, and files for other programs."""
