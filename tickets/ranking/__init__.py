"""The mathematics of a ranking: grids of patches, views, how many patches are kept, projection into another view.

Arrays and numbers only: nothing here knows a file.

May import: nothing.
"""
