"""The command `rookery` of a version that is yet to come: layout 2, and a migration to it.

`python -m tests.upgrade.next_layout store migrate ...`. The migration copies the list of sessions and the retained
messages into new keys, three at a time; nodes of that version take no notice. `DIE=before:4` kills the process at the
end of its fourth portion, before it noted how far it came, `DIE=after:4` behind that; `DIE=raise:4` is a failure, and
`DIE=lost:4` one of the connection. With `DIE=slow:0` it counts for longer than it may be alone without saying so again.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from broker.cli import main
from broker.errors import ClusterError, StoreUnavailable
from cluster import layout
from cluster.redis import migrating
from cluster.redis.migrating import Migration, Step

_LIBRARY = b"""#!lua name=next_layout
local PORTION = 3

local function late(args)
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000) > tonumber(args[1])
end

local function sessions(keys, args)
  if late(args) then
    return redis.error_reply('LATE')
  end
  local p, from = keys[1], args[2] == '' and '-' or '(' .. args[2]
  local ids = redis.call('ZRANGE', p .. 'ix', from, '+', 'BYLEX', 'LIMIT', 0, PORTION)
  for _, id in ipairs(ids) do
    redis.call('HSET', p .. 'ix2', id, #id)
    redis.call('HINCRBY', p .. 'times', id, 1)
  end
  return { #ids == PORTION and ids[#ids] or '', #ids }
end

local function retained(keys, args)
  if late(args) then
    return redis.error_reply('LATE')
  end
  local p = keys[1]
  local found = redis.call('HSCAN', p .. 'ret', args[2] == '' and '0' or args[2], 'COUNT', PORTION)
  if #found[2] > 0 then
    redis.call('HSET', p .. 'ret2', unpack(found[2]))
  end
  return { found[1] == '0' and '' or found[1], #found[2] / 2 }
end

local function count_sessions(keys)
  return redis.call('ZCARD', keys[1] .. 'ix')
end

local function count_retained(keys)
  return redis.call('HLEN', keys[1] .. 'ret')
end

redis.register_function('next_sessions', sessions)
redis.register_function('next_retained', retained)
redis.register_function { function_name = 'next_count_sessions', callback = count_sessions, flags = { 'no-writes' } }
redis.register_function { function_name = 'next_count_retained', callback = count_retained, flags = { 'no-writes' } }
"""

_STEPS = (
    Step("sessions", "partitions", "next_sessions", "next_count_sessions"),
    Step("retained messages", "retained", "next_retained", "next_count_retained"),
)


_FAILURES = {"raise": ClusterError, "lost": StoreUnavailable}


class _Mortal(migrating.Migrator):
    """Ends when it was told to."""

    _portions = 0

    def _total(self, *arguments: Any) -> int:
        total = super()._total(*arguments)
        if os.environ.get("DIE") == "slow:0":
            self._until_ms = 1
        return total

    def _keep(self, *progress: object) -> None:
        when, _, count = os.environ.get("DIE", "").partition(":")
        self._portions += 1
        ends = count == str(self._portions)
        if ends and when in _FAILURES:
            raise _FAILURES[when]("a failure")
        if ends and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super()._keep(*progress)
        if ends:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    import broker.stores

    layout.LAYOUT = 2
    migrating.MIGRATIONS.append(Migration(1, "lists that are hashes", _STEPS, lambda: _LIBRARY))
    broker.stores.Migrator = _Mortal  # type: ignore[attr-defined]
    sys.exit(main())
