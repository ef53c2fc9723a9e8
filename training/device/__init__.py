"""The device that computes: batches on their way to it, numbers on their way back, its precision and its compiler.

May import: nothing.
"""
