"""Weight-level lottery tickets: which weights a model keeps, as a mask; how masks are made, stored and held to.

May import: models, settings.
"""
