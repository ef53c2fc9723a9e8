"""What a person looks at: figures, self-contained HTML pages and their templates, the gallery of tickets.

May import: nothing.
"""
