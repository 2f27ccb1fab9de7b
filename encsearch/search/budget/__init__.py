"""What a sweep may cost, and how long the rest of it takes."""
