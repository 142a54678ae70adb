"""Where the files of models are in the object store: each once, by its content."""

MODEL_FILES = "models/sha256/"
"""What the keys of all of them begin with."""


def model_file_key(sha256: str) -> str:
    """The key of the file of this content."""
    return f"{MODEL_FILES}{sha256}"
