"""PyTorch Distributed Checkpoint on cloud object stores: the shared core."""
