"""How a run can end before its last step, other than by a mistake of the user's."""


class NonFiniteError(RuntimeError):
  """A loss or gradient norm that isn't finite; the message says at which step."""


class Interrupted(RuntimeError):
  """A signal ended the run after it had been saved; the message says how to resume."""

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.signum = signum
