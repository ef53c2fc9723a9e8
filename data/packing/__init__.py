"""Making shards: of folders, archives, ImageNet and CIFAR as they are published, and the digits of the demo.

May import: images, shards.
"""
