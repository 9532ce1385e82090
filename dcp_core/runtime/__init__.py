"""What touches the process: Python's garbage collector, and the memory of tensors."""
