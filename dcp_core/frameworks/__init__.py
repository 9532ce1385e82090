"""Training frameworks whose checkpoints lie in buckets: what each of them needs beyond DCP.

No other room imports this one, and the modules of a framework are imported by whoever uses it.
"""
