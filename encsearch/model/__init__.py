"""EncNet as plain single-device PyTorch modules: distribution, precision and loss are applied from outside.

Shape letters: B images, C channels, H and W pixels, N = H*W, K codewords.
"""
