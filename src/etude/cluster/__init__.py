"""Runs on a Ray cluster: an engine for grids and searches, storage that machines without a shared disk use.

Ray and fsspec (extra `ray`) are imported when they are used, PyTorch not at all.
"""
