"""How good a student is: the images it is tried on, accuracy with and without tickets, what the figures mean.

May import: settings, device, distributed, models, selectors.
"""
