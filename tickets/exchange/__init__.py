"""Ticket files as something else: one-file archives, cards, npz and COCO, and what is imported from them.

May import: ranking, format, store, derive.
"""
