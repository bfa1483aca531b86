"""What a run shows while it trains: hooks, TensorBoard, console, pictures, health."""
