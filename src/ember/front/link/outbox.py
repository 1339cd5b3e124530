"""The messages that are on their way to the engine: those of one turn of the event loop leave as one frame."""

from __future__ import annotations

import asyncio

from ember import wire

MAX_FRAME_BYTES = wire.MAX_FRAME_BYTES // 2  # more than that leaves in several frames


class Outbox:
    """Queues messages and writes them to the current connection. Without one they are lost, as the engine is."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._encoded: list[bytes] = []
        self._num_bytes = 0

    def connect(self, transport: asyncio.Transport) -> None:
        """Write to this connection from now on."""
        self._transport = transport

    def clear(self) -> None:
        """Drop what has not left yet."""
        self._encoded, self._num_bytes = [], 0

    def send(self, message: wire.FrontMessage) -> None:
        """Queue a message for the next frame. Raises ValueError, and queues nothing, when it cannot be encoded."""
        encoded = wire.encode_front(message)
        if self._num_bytes + len(encoded) > MAX_FRAME_BYTES:
            self._flush()
        if not self._encoded:
            asyncio.get_running_loop().call_soon(self._flush)
        self._encoded.append(encoded)
        self._num_bytes += len(encoded)

    def _flush(self) -> None:
        encoded = self._encoded
        self.clear()
        if encoded and self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.frame_front(encoded))
