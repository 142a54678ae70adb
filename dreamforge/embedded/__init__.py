"""The whole service on one machine: PostgreSQL, Valkey, an S3 server and Ray, from wheels, on loopback."""
