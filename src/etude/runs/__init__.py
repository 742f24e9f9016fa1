"""The room that command line, page and cluster share: training a preset to its end, flags, grids, launching, tables."""
