"""Networks: timm's models by name, how they embed patches, the student with tickets, weights and where they come from.

May import: settings.
"""
