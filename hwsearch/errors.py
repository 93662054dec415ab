"""The one exception that reaches the user."""


class UserError(Exception):
    """Something outside the program is wrong and the user can mend it.

    The message is one line that says what was found, what is wanted and where. The command line prints it without a traceback
    and exits with code 2.
    """
