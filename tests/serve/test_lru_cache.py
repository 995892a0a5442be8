"""Cache of the most recently used values."""

from grr_coca_serve.lru_cache import LruCache


def test_least_recently_used_value_is_dropped():
    cache = LruCache[str, int](2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


def test_value_that_is_too_large_drops_only_its_own_key():
    cache = LruCache[str, str](10)
    cache.put("a", "old", 4)
    cache.put("b", "kept", 4)
    cache.put("a", "too large", 11)
    assert (cache.get("a"), cache.get("b")) == (None, "kept")
    cache.put("c", "fits", 6)
    assert (cache.get("b"), cache.get("c")) == ("kept", "fits")
