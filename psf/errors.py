"""The one exception that scripts turn into a single line for the user."""


class InputError(Exception):  # not a ValueError: tyro would draw a box around that
    """A mistake in the user's input: the message says what is wrong and what to do."""
