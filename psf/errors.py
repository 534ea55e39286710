"""The one exception that scripts turn into a single line for the user."""


class InputError(ValueError):
    """A mistake in the user's input: the message says what is wrong and what to do."""
