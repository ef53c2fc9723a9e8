"""The stored form of version 1: header, layout of the arrays, chunks, manifest, and the rows that they hold.

What a reader must refuse is decided here; nothing here opens a file. `tickets/README.md` is the specification.

May import: ranking.
"""
