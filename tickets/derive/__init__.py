"""Ticket files made of ticket files: a draft and what fills it (edits, set algebra, controls, smaller forms).

May import: ranking, format, store.
"""
