"""etude: classic deep-learning systems from scratch, held against their published numbers."""

__version__ = "0.1.0"
