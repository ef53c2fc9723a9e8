"""Who ranks patches: the protocol of a ranker, the paper's selector, rankers inside the training loop.

May import: settings, device, models.
"""
