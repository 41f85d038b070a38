"""The one error class for what a user can mend."""


class FramePackError(Exception):
    """Bad input: the message names the input, what is wrong with it and what to do."""
