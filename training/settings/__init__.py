"""What can be set: fields and their bounds, recipes and layers of settings, TOML, which runs may be compared.

May import: nothing.
"""
