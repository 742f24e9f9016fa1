"""Runs on a Ray cluster: an engine for grids, storage that machines without a shared disk use, a search over settings.

Ray and fsspec (extra `ray`) are imported when they are used, PyTorch not at all.
"""
