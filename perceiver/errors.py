"""The error that stands for a mistake of the user, not of the program, and how to quote another in its line."""


class UserError(ValueError):
    """A mistake that the user can mend; its text is one line that says what is wrong and how to mend it."""


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line of moderate length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
