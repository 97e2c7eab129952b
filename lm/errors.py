"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A user's mistake, worded as one line that names the thing and the way out.

    Entry points print it without a traceback and exit with status 2 (`lm.config.run`); a traceback is for our own bugs.
    """
