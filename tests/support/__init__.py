"""What several tests need: buckets and ranks, states to save, servers and networks that misbehave."""
