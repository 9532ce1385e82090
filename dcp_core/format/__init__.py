"""What lies in the bucket: object names, item frames, checksums and the commit record. No I/O."""
