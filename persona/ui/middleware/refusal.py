"""A request that is refused before the page sees it."""


class RequestRefused(Exception):
    """A request that is not passed on. status: of HTTP; text: for the user."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text
