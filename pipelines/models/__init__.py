"""What is done with a trained model: predict, serve, register, export, compare."""
