"""Every class of attack for a moment, against one server. `make soak` runs them for half an hour."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

import pytest

from tests.attack.blocks import PLATFORM, RESTARTING, SERVE
from tests.attack.report import Block
from tests.attack.server import Server

SECONDS = 1.5  # for each class


@pytest.mark.parametrize(("command", "blocks"), [("serve", SERVE), ("platform", PLATFORM)])
def test_one_server_survives_every_class_of_attack(command: str, blocks: Mapping[str, Block]) -> None:
    """After each block the server is healthy, idle and right, and holds no more than before."""

    async def attack() -> None:
        async with Server(command) as server:
            before = server.held()
            for index, (name, block) in enumerate(blocks.items()):
                report = await block(server, random.Random(index), SECONDS)
                assert report.attempts, name
                assert not report.wrong, (name, report.wrong[:5])
                left = await server.settle(before)
                assert not left, (name, left)
                if name in RESTARTING:
                    before = server.held()
            assert not server.log_faults()

    asyncio.run(attack())
