"""Dream Forge: self-hosted image generation that loses nothing."""

__version__ = "0.1.0"
