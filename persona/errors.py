"""Everything Persona refuses, as one small tree.

    PersonaError                 a message for the user: place, value, next step
    ├── InputError (ValueError)  pairs, settings or names that cannot be right
    ├── BaseError                a base model that cannot be opened
    ├── TemplateError            a chat template that does not fit the model or the pairs
    ├── RunError                 a training run that cannot start or did not end well
    ├── AdapterError             an adapter that is broken, unsafe or made for another base
    └── ShareError               a zip, link or Hub transfer that failed

The library raises these; the command line turns them into exit status 1, the page into a notice.
"""


class PersonaError(Exception):
    """A message that a user can act on. Never carries a token."""


class InputError(PersonaError, ValueError):
    """What the user gave is refused; the message says where, what and what to do."""


class BaseError(PersonaError):
    """A base model cannot be opened."""


class TemplateError(PersonaError):
    """A chat template does not fit the model or the pairs."""


class RunError(PersonaError):
    """A run cannot start, or has failed."""


class AdapterError(PersonaError):
    """An adapter is broken, unsafe, or belongs to another base."""


class ShareError(PersonaError):
    """A zip, link or Hub transfer failed."""
