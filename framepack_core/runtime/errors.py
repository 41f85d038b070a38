"""The one error class for user errors: what the user can fix."""


class FramePackError(Exception):
    """Bad input: the message names the input, what is wrong with it and what to do."""
