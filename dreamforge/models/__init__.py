"""What a model is and how it gets here."""
