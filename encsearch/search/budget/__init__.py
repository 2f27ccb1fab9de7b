"""The budget of a sweep, and the forecast of its remaining time."""
