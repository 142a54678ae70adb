"""A stand-in for NVIDIA's library: there is no card here."""
