"""The device that computes: batches on their way to it, numbers on their way back, precision, compiler, facts of it.

May import: nothing.
"""
