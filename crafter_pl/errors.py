"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """A mistake that the user can mend: the message says what, where, and the way out.

    The command line prints the message alone and exits with code 2; library users see an ordinary exception.
    """
