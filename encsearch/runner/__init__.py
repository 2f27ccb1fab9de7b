"""One training from start to end: in this process, or as Ray Train workers."""
