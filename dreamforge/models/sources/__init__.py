"""Where models come from: one adapter for each kind of place."""
