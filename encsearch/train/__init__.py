"""The training loop: torch only, no Ray, no tracking."""
