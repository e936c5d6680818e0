"""Training pipelines on Ray Train, tracked in MLflow. Imports perceiver, never tune."""
