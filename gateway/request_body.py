"""
Reading a request's body, with bounds on its bytes. The server bounds its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from gateway.asgi import Message, Receive
from gateway.problems import Refusal

_TRY_AGAIN = ((b"retry-after", b"1"),)


class ClientGone(Exception):
    """
    The client hung up before its request was complete; there is nobody to answer.
    """


class BodyReader:
    """
    Reads bodies of at most *bytes_max*; those that arrive in parts hold *held_bytes_max* in all.
    """

    def __init__(self, *, bytes_max: int, held_bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._held_bytes_max = held_bytes_max
        self._held_bytes = 0

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """
        Read the whole body; raises Refusal or ClientGone.
        """
        if int(headers.get(b"content-length", b"0")) > self._bytes_max:
            raise self._too_large()
        message = await receive()
        if message.get("more_body"):
            return await self._read_parts(message, receive)
        body = _part(message)
        if len(body) > self._bytes_max:
            raise self._too_large()
        return body

    async def _read_parts(self, message: Message, receive: Receive) -> bytes:
        body = bytearray()
        try:
            while True:
                part = _part(message)
                body += part
                self._held_bytes += len(part)
                if len(body) > self._bytes_max:
                    raise self._too_large()
                if self._held_bytes > self._held_bytes_max:
                    raise Refusal("overloaded", headers=_TRY_AGAIN)
                if not message.get("more_body"):
                    return bytes(body)
                message = await receive()
        finally:
            self._held_bytes -= len(body)

    def _too_large(self) -> Refusal:
        return Refusal("body_too_large", f"At most {self._bytes_max} bytes are taken at once.")


def _part(message: Message) -> bytes:
    if message["type"] != "http.request":
        raise ClientGone
    part: bytes = message.get("body", b"")
    return part


def media_type(headers: Mapping[bytes, bytes], accepted: Sequence[str]) -> str:
    """
    Return which of the *accepted* types the body has; raises Refusal for any other.
    """
    name = _media_type_name(headers.get(b"content-type", b""))
    encoding = headers.get(b"content-encoding", b"identity")
    if name in accepted and encoding == b"identity":
        return name
    detail = f"Send {' or '.join(accepted)}, in UTF-8 and without a content encoding."
    raise Refusal("media_type_unsupported", detail)


@lru_cache(maxsize=256)
def _media_type_name(content_type: bytes) -> str:
    """
    Return the bare name; none when the text is in another character set than UTF-8.
    """
    name, *parameters = content_type.decode("latin-1").lower().split(";")
    for parameter in parameters:
        attribute, _, value = parameter.strip().partition("=")
        if attribute == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            return ""
    return name.strip()
