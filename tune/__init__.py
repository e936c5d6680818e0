"""Hyperparameter search on Ray Tune. The only package that imports pipelines."""
