"""The error that stands for a mistake of the user, not of the program."""


class UserError(ValueError):
    """A mistake that the user can mend; its text is one line that says what is wrong and how to mend it."""
