"""Perceiver IO models, their tasks and their data. Imports neither ray nor mlflow."""
