"""Ticket files as something else: one-file archives, cards, npz and COCO, and what is imported from them.

Parquet is in `data/sharing/`: it needs pyarrow, and this folder is for those who have numpy and zarr alone.

May import: ranking, format, store, derive.
"""
