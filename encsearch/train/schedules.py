"""Learning-rate schedules as pure functions of progress."""


def poly(progress: float, power: float) -> float:
    """Factor on the base learning rate: (1 - progress) ** power (Zhang et al., CVPR 2018, section 4).

    `progress` in [0, 1) is the share of all optimizer steps already taken.
    """
    assert 0 <= progress < 1, progress
    return float((1 - progress) ** power)
