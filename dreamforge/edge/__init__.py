"""The edge: what stands between clients and the replicas. Needs nothing but the standard library."""
