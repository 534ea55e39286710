"""The exception that scripts print as a single line for the user."""


class InputError(Exception):  # not a ValueError, around which tyro draws a box
    """A mistake in the user's input. The message says what is wrong and what to do."""
