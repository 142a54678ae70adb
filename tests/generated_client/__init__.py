"""A client that a generator has made of our OpenAPI document, at work."""
