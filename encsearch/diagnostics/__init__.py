"""What a trained context module does: codewords, scaling factors and class presence on a sample of images.

The figures describe one training. `figures.LIMITS` says what they cannot show.
"""
