"""The page pool: sharing, eviction order, and that nothing leaks whatever happens."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ember.engine.core.block_pool import BlockPool, chain_hash, root_hash


def find(pool: BlockPool, hashes: list[bytes], group: int = 0) -> list[int]:
    """The cached pages of the head of a chain."""
    cached = pool.cached(group)
    return [cached[block_hash] for block_hash in itertools.takewhile(cached.__contains__, hashes)]


def chain(*blocks: list[int], salt: str | None = None) -> list[bytes]:
    hashes = [root_hash(salt)]
    for block in blocks:
        hashes.append(chain_hash(hashes[-1], block))
    return hashes[1:]


def test_hash_depends_on_tokens_order_and_salt():
    assert chain([1, 2], [3, 4]) == chain([1, 2], [3, 4])
    assert chain([1, 2], [3, 4])[1] != chain([9, 2], [3, 4])[1]
    assert chain([1, 2])[0] != chain([2, 1])[0]
    assert chain([1, 2], salt="a")[0] != chain([1, 2], salt="b")[0]
    assert chain([1, 2], salt="")[0] == chain([1, 2])[0]


def test_released_pages_stay_findable_until_they_are_reused():
    pool = BlockPool(3)
    hashes = chain([1], [2])
    blocks = [pool.allocate(), pool.allocate()]
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.publish(block, block_hash)
    pool.release(blocks)
    assert pool.num_free == 3
    assert find(pool, hashes) == blocks
    pool.allocate()  # the page without content goes first
    assert find(pool, hashes) == blocks
    pool.allocate()  # then the tail of the chain, the head last
    assert find(pool, hashes) == blocks[:1]
    pool.allocate()
    assert find(pool, hashes) == []
    assert pool.num_free == 0


def test_least_recently_released_is_evicted_first():
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, chain([1])[0])
    pool.publish(second, chain([2])[0])
    pool.release([second])
    pool.release([first])
    assert pool.allocate() == second
    assert find(pool, chain([1])) == [first]


def test_held_pages_survive_until_the_last_holder_lets_go():
    pool = BlockPool(1)
    block = pool.allocate()
    pool.publish(block, chain([1])[0])
    pool.hold([block])
    pool.release([block])
    assert pool.num_free == 0
    pool.release([block])
    assert pool.num_free == 1


def test_equal_content_is_published_once():
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, chain([1])[0])
    pool.publish(second, chain([1])[0])
    assert find(pool, chain([1])) == [first]
    pool.release([second])
    assert pool.allocate() == second  # it holds nothing findable, so it goes before cached content


def test_a_page_is_found_by_its_group_and_its_hash():
    pool = BlockPool(3, num_groups=2)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, chain([1])[0], 0)
    assert find(pool, chain([1]), 1) == []
    pool.publish(second, chain([1])[0], 1)
    assert (find(pool, chain([1]), 0), find(pool, chain([1]), 1)) == ([first], [second])
    pool.release([second])
    assert pool.allocate() not in (first, second) and pool.allocate() == second
    assert (find(pool, chain([1]), 0), find(pool, chain([1]), 1)) == ([first], [])


def test_forgotten_content_is_found_no_more_and_its_pages_stay():
    pool = BlockPool(4)
    first, second = chain([1, 2], [3, 4])
    held, free = pool.allocate(), pool.allocate()
    pool.publish(held, first)
    pool.publish(free, second)
    pool.release([free])
    pool.forget_prefixes()
    assert find(pool, [first, second]) == [] and pool.num_free == 3
    pool.publish(held, second)
    assert find(pool, [second]) == [held]
    pool.release([held])
    assert sorted(pool.allocate() for _ in range(4)) == [0, 1, 2, 3]


def test_caching_can_be_turned_off():
    pool = BlockPool(1, enable_prefix_caching=False)
    block = pool.allocate()
    pool.publish(block, chain([1])[0])
    assert find(pool, chain([1])) == []


OPERATIONS = st.tuples(st.sampled_from(["allocate", "share", "release", "publish"]), st.integers(0, 7))


@given(st.lists(OPERATIONS, max_size=80))
def test_any_sequence_of_operations_conserves_pages(operations):
    pool = BlockPool(8)
    held: list[int] = []
    for operation, value in operations:
        if operation == "allocate" and pool.num_free:
            held.append(pool.allocate())
        elif operation == "share":
            found = find(pool, chain([value]))
            pool.hold(found)
            held += found
        elif operation == "release" and held:
            pool.release([held.pop(value % len(held))])
        elif operation == "publish" and held:
            pool.publish(held[value % len(held)], chain([value])[0])
        assert pool.num_free == 8 - len(set(held))
    for block in held:
        pool.release([block])
    assert pool.num_free == 8
    assert sorted(pool.allocate() for _ in range(8)) == list(range(8))
