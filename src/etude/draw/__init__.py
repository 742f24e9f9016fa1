"""Curves, sheets of pictures and palettes, for figures, report and page alike."""
