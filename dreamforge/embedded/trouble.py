"""What can go wrong while the stack starts, said in one sentence."""


class StackError(Exception):
    """The stack cannot start, or cannot go on. The message is for a person, and says what to do."""
