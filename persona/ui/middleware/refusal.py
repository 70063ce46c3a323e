"""A request that is refused before the page sees it."""

from starlette.responses import JSONResponse


class RequestRefused(Exception):
    """A request that is not passed on. status: of HTTP; text: for the user."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text

    def response(self) -> JSONResponse:
        """The answer to it, under both names that Gradio's clients look for."""
        return JSONResponse({"detail": self.text, "error": self.text}, self.status)
