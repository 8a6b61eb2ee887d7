"""Text for messages."""

__all__ = ["shorten"]


def shorten(text: str, limit: int = 200) -> str:
    """Return `text`, cut in the middle where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    kept = limit - len(" ... ")
    return f"{text[: kept - kept // 2]} ... {text[len(text) - kept // 2 :]}"
